/*
 * Handing out descriptors: who connects to a unix socket gets a message and some descriptors.
 *
 * `kvmpy top` gets, once, all that it needs to watch a machine, and reads it from then on without
 * this process. So one thread, asleep in accept(), is all that being watched costs.
 *
 * The socket's name is abstract (unix(7)): it ends with the process, however that ends. Anyone on
 * this host can connect, so the caller's user is looked at; who connects has to look at ours, since
 * anyone can take a name, too.
 */
#define _GNU_SOURCE /* accept4, struct ucred, pthread_setname_np */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "shim.h"

/* Python's own mmap keeps a descriptor for as long as the memory is there. */
struct shim_published *shim_published_map(int fd, size_t size, int *error)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	*error = memory == MAP_FAILED ? -errno : 0;
	return *error ? NULL : memory;
}

void shim_published_unmap(struct shim_published *published, size_t size)
{
	munmap(published, size);
}

/* ------------------------------------------------------------------ the thread */

#define MOST_FDS 64 /* in a packet; the kernel takes 253 */
#define STACK (128 << 10)
#define BACKLOG 16

struct shim_handout {
	struct shim_at_fork at_fork;
	int socket; /* -1: the thread is in the parent, which goes on handing out */
	pthread_t thread;
	size_t length;
	unsigned fd_count;
	const uint8_t *message; /* both behind this */
	int fds[];
};

static bool is_own_user(int connection)
{
	struct ucred peer;
	socklen_t length = sizeof(peer);

	return !getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &length) &&
	       peer.uid == geteuid();
}

/* Without waiting: who does not read gets no more. */
static bool send_packet(int connection, const void *data, size_t length, const int *fds,
			unsigned count)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(MOST_FDS * sizeof(int))];
	} control = { 0 };
	struct iovec io = { .iov_base = (void *)data, .iov_len = length };
	struct msghdr packet = { .msg_iov = &io, .msg_iovlen = 1 };

	if (count) {
		packet.msg_control = &control;
		packet.msg_controllen = CMSG_SPACE(count * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
	}
	return sendmsg(connection, &packet, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

/* One packet with the message, and each with up to MOST_FDS descriptors. */
static void serve(const struct shim_handout *handout, int connection)
{
	const uint8_t *data = handout->message;
	size_t length = handout->length;
	unsigned sent = 0;

	do {
		unsigned count = handout->fd_count - sent;

		if (count > MOST_FDS)
			count = MOST_FDS;
		if (!send_packet(connection, data, length, handout->fds + sent, count))
			return;
		sent += count;
		length = 1; /* a packet of no bytes would be the end */
	} while (sent < handout->fd_count);
}

static void *serve_all(void *argument)
{
	const struct shim_handout *handout = argument;
	struct timespec pause = { .tv_nsec = 100000000 };

	for (;;) {
		int connection = accept4(handout->socket, NULL, NULL, SOCK_CLOEXEC);

		if (connection >= 0) {
			if (is_own_user(connection))
				serve(handout, connection);
			close(connection);
		} else if (errno == EINVAL) {
			return NULL; /* shut down */
		} else if (errno != EINTR && errno != ECONNABORTED) {
			nanosleep(&pause, NULL); /* no descriptor left, or no memory: not in a whirl */
		}
	}
}

static int listen_at(const uint8_t *name, size_t length)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd, error;

	if (!length || length >= sizeof(address.sun_path))
		return -EINVAL;
	memcpy(address.sun_path + 1, name, length); /* after a zero: abstract */
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (bind(fd, (struct sockaddr *)&address,
		 offsetof(struct sockaddr_un, sun_path) + 1 + length) || listen(fd, BACKLOG)) {
		error = -errno;
		close(fd);
		return error;
	}
	return fd;
}

/* A thread that no signal is for, least of all a kick's. */
static int start(struct shim_handout *handout)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int error = pthread_attr_init(&attributes);

	if (error)
		return -error;
	sigfillset(&all);
	pthread_attr_setstacksize(&attributes, STACK);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&handout->thread, &attributes, serve_all, handout);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (!error)
		pthread_setname_np(handout->thread, "kvmpy-watched");
	return -error;
}

static void in_child(struct shim_at_fork *at_fork)
{
	struct shim_handout *handout = SHIM_OF_FORK(struct shim_handout, at_fork);

	close(handout->socket);
	handout->socket = -1;
}

/*
 * Message and descriptors for who connects to the abstract `name`. The descriptors stay the
 * caller's, and open until shim_handout_close(). 0, or -errno.
 */
int shim_handout_open(struct shim_handout **result, const uint8_t *name, size_t name_length,
		      const uint8_t *message, size_t length, const int *fds, unsigned fd_count)
{
	struct shim_handout *handout =
		malloc(sizeof(*handout) + fd_count * sizeof(*fds) + length);
	int error;

	if (!handout)
		return -ENOMEM;
	if (fd_count)
		memcpy(handout->fds, fds, fd_count * sizeof(*fds));
	handout->message = (uint8_t *)(handout->fds + fd_count);
	if (length)
		memcpy(handout->fds + fd_count, message, length);
	handout->length = length;
	handout->fd_count = fd_count;
	handout->socket = error = listen_at(name, name_length);
	if (error >= 0) {
		error = start(handout);
		if (!error) {
			shim_at_fork(&handout->at_fork, in_child);
			*result = handout;
			return 0;
		}
		close(handout->socket);
	}
	free(handout);
	return error;
}

void shim_handout_close(struct shim_handout *handout)
{
	if (!handout)
		return;
	shim_not_at_fork(&handout->at_fork);
	if (handout->socket >= 0) {
		shutdown(handout->socket, SHUT_RDWR);
		pthread_join(handout->thread, NULL);
		close(handout->socket);
	}
	free(handout);
}
