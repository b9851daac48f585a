/*
 * A device's interrupt line, whatever is at its other end. The caller holds its device's lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "shim.h"

static void close_eventfd(const struct shim_line *line)
{
	if (line->eventfd >= 0)
		close(line->eventfd);
}

void shim_line_init(struct shim_line *line)
{
	*line = (struct shim_line){ .vm_fd = -1, .eventfd = -1 };
}

/* The line is low afterwards; an I/O APIC is told, KVM is not: its descriptor may be gone. 0, or
 * -errno: there is no descriptor left for a duplicate, and the line leads where it did. */
int shim_line_connect(struct shim_line *line, const struct shim_line *to)
{
	int eventfd = to->eventfd < 0 ? -1 : fcntl(to->eventfd, F_DUPFD_CLOEXEC, 0);

	if (to->eventfd >= 0 && eventfd < 0)
		return -errno;
	if (to->ioapic)
		shim_ioapic_hold(to->ioapic);
	if (line->ioapic) {
		shim_ioapic_set_line(line->ioapic, line->gsi, false);
		shim_ioapic_put(line->ioapic);
	}
	close_eventfd(line);
	*line = *to;
	line->eventfd = eventfd;
	line->level = false;
	return 0;
}

void shim_line_disconnect(struct shim_line *line)
{
	struct shim_line none;

	shim_line_init(&none);
	shim_line_connect(line, &none);
}

/* The device goes, without a word to the I/O APIC, which may be about to go, too. */
void shim_line_drop(struct shim_line *line)
{
	shim_ioapic_put(line->ioapic);
	close_eventfd(line);
	shim_line_init(line);
}

/* KVM's chip has been set, and knows no longer what it was told. An eventfd is an edge, and over. */
void shim_line_assert(struct shim_line *line)
{
	bool level = line->level;

	if (line->vm_fd < 0)
		return;
	line->level = !level;
	shim_line_set(line, level);
}

/* In a fork()ed child: nobody there is to raise the line, and nobody will release the lock. */
void shim_line_at_fork(struct shim_line *line, pthread_mutex_t *lock)
{
	pthread_mutex_init(lock, NULL);
	close_eventfd(line);
	line->vm_fd = line->eventfd = -1;
}

/* The I/O APIC is told of a level that is up whenever its device looks at it: it may have had no
 * LAPIC to take it. */
void shim_line_set(struct shim_line *line, bool level)
{
	if (level == line->level && !(level && line->ioapic))
		return;
	line->level = level;
	if (line->ioapic) {
		shim_ioapic_set_line(line->ioapic, line->gsi, level);
	} else if (line->eventfd >= 0) {
		uint64_t one = 1;

		/* An irqfd is an edge. It cannot fail: the counter never nears its limit. */
		if (level && write(line->eventfd, &one, sizeof(one)) < 0)
			line->level = false;
	} else if (line->vm_fd >= 0) {
		struct kvm_irq_level request = { .irq = line->gsi, .level = level };

		/* Fails only once the VM is gone, and with it who would have listened. */
		if (ioctl(line->vm_fd, KVM_IRQ_LINE, &request) < 0)
			line->vm_fd = -1;
	}
}
