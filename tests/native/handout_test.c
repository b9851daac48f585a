/*
 * What is handed to who connects, and counters in memory that others see.
 */
#define _GNU_SOURCE /* memfd_create */
#include <pthread.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "fake_kvm.h"

#define FDS 130 /* two full packets, and two more */

static char name[64];

static int call(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	memcpy(address.sun_path + 1, name, strlen(name));
	CHECK(fd >= 0);
	if (connect(fd, (struct sockaddr *)&address,
		    offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name))) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Until the other side closes; the first packet goes to `message`. The number of descriptors. */
static unsigned receive(int fd, char *message, size_t room, int *fds)
{
	unsigned count = 0;

	for (;;) {
		char control[CMSG_SPACE(253 * sizeof(int))];
		char rest[16];
		struct iovec io = { .iov_base = count ? rest : message,
				    .iov_len = count ? sizeof(rest) : room };
		struct msghdr packet = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = control,
					 .msg_controllen = sizeof(control) };
		struct cmsghdr *header;
		ssize_t length = recvmsg(fd, &packet, MSG_CMSG_CLOEXEC);

		CHECK(length >= 0);
		CHECK(!(packet.msg_flags & (MSG_TRUNC | MSG_CTRUNC)));
		if (!length)
			return count;
		header = CMSG_FIRSTHDR(&packet);
		if (header) {
			unsigned more = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);

			CHECK(count + more <= FDS);
			memcpy(fds + count, CMSG_DATA(header), more * sizeof(int));
			count += more;
		}
	}
}

static void everyone_gets_it_all(void)
{
	struct shim_handout *handout;
	int mine[FDS], fds[FDS];
	char message[16];

	for (unsigned i = 0; i < FDS; i++) {
		mine[i] = memfd_create("one", MFD_CLOEXEC);
		CHECK(!ftruncate(mine[i], i));
	}
	CHECK_EQUAL(shim_handout_open(&handout, (uint8_t *)name, strlen(name),
				      (const uint8_t *)"hello", 5, mine, FDS), 0);
	for (unsigned round = 0; round < 3; round++) {
		int fd = call();

		CHECK_EQUAL(receive(fd, message, sizeof(message), fds), FDS);
		CHECK(!memcmp(message, "hello", 5));
		for (unsigned i = 0; i < FDS; i++) {
			CHECK_EQUAL(lseek(fds[i], 0, SEEK_END), i);
			close(fds[i]);
		}
		close(fd);
	}
	shim_handout_close(handout);
	CHECK_EQUAL(call(), -1);
	for (unsigned i = 0; i < FDS; i++)
		close(mine[i]);
}

/* Callers that hang up at once, or never read, stand in nobody's way. */
static void rude_callers(void)
{
	struct shim_handout *handout;
	int silent[8], fd, fds[FDS];
	char message[16];

	CHECK_EQUAL(shim_handout_open(&handout, (uint8_t *)name, strlen(name),
				      (const uint8_t *)"hello", 5, NULL, 0), 0);
	for (unsigned i = 0; i < 8; i++) {
		silent[i] = call();
		close(call());
	}
	fd = call();
	CHECK_EQUAL(receive(fd, message, sizeof(message), fds), 0);
	CHECK(!memcmp(message, "hello", 5));
	close(fd);
	for (unsigned i = 0; i < 8; i++)
		close(silent[i]);
	shim_handout_close(handout);
	shim_handout_close(NULL);
}

static void a_child_lets_its_parents_be(void)
{
	struct shim_handout *handout;
	int fd, fds[FDS], status;
	char message[16];
	pid_t child;

	CHECK_EQUAL(shim_handout_open(&handout, (uint8_t *)name, strlen(name),
				      (const uint8_t *)"hello", 5, NULL, 0), 0);
	child = fork();
	if (!child) {
		shim_handout_close(handout);
		_exit(0);
	}
	CHECK_EQUAL(waitpid(child, &status, 0), child);
	CHECK_EQUAL(status, 0);
	fd = call();
	CHECK_EQUAL(receive(fd, message, sizeof(message), fds), 0);
	close(fd);
	shim_handout_close(handout);
}

static void what_cannot_be_opened(void)
{
	struct shim_handout *handout, *second;

	CHECK_EQUAL(shim_handout_open(&handout, (uint8_t *)name, 0, NULL, 0, NULL, 0), -EINVAL);
	CHECK_EQUAL(shim_handout_open(&handout, (uint8_t *)name, 108, NULL, 0, NULL, 0), -EINVAL);
	CHECK_EQUAL(shim_handout_open(&handout, (uint8_t *)name, strlen(name), NULL, 0, NULL, 0), 0);
	CHECK_EQUAL(shim_handout_open(&second, (uint8_t *)name, strlen(name), NULL, 0, NULL, 0),
		    -EADDRINUSE);
	shim_handout_close(handout);
}

static struct shim_published *shared;

static void look(void)
{
	CHECK_EQUAL(shared->vcpus[1].running, SHIM_RUNNING);
	CHECK_EQUAL(shim_vcpu_count_in(vcpu, &shared->vcpus[0]), -EBUSY);
}

static void counters_move_into_shared_memory(void)
{
	static const struct step script[] = {
		{ .kind = STEP_EXIT, .size = KVM_EXIT_HLT },
		{ .kind = STEP_CALL, .call = look },
		{ .kind = STEP_EXIT, .size = KVM_EXIT_HLT },
		{ 0 },
	};
	size_t size = sizeof(struct shim_published) + 2 * sizeof(struct shim_counters);
	int fd = memfd_create("shared", MFD_CLOEXEC), error;

	CHECK_EQUAL(sizeof(struct shim_published) % 64, 0);
	CHECK_EQUAL(sizeof(struct shim_counters) % 64, 0);
	CHECK(!ftruncate(fd, size));
	shared = shim_published_map(fd, size, &error);
	CHECK_EQUAL(error, 0);
	close(fd);
	begin(script, ALL_SYNC);
	CHECK_EQUAL(shim_run(vcpu, -1, UINT64_MAX), SHIM_EXIT);
	shared->vcpus[1].id = 7;
	CHECK_EQUAL(shim_vcpu_count_in(vcpu, &shared->vcpus[1]), 0);
	CHECK_EQUAL(shared->vcpus[1].exits[KVM_EXIT_HLT], 1);
	CHECK_EQUAL(shim_run(vcpu, -1, UINT64_MAX), SHIM_EXIT);
	CHECK_EQUAL(shared->vcpus[1].exits[KVM_EXIT_HLT], 2);
	CHECK_EQUAL(shared->vcpus[1].runs, 2);
	CHECK_EQUAL(shared->vcpus[1].running, SHIM_IDLE);
	CHECK_EQUAL(shared->vcpus[1].thread, getpid());
	CHECK_EQUAL(shared->vcpus[1].id, 7);
	CHECK_EQUAL(shared->vcpus[0].runs, 0);
	end();
	shim_published_unmap(shared, size);
	CHECK(!shim_published_map(-1, size, &error));
	CHECK_EQUAL(error, -EBADF);
}

int main(void)
{
	snprintf(name, sizeof(name), "kvmpy.handout-test/%d", getpid());
	everyone_gets_it_all();
	rude_callers();
	a_child_lets_its_parents_be();
	what_cannot_be_opened();
	counters_move_into_shared_memory();
	puts("handout: ok");
	return 0;
}
