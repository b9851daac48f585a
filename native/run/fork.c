/*
 * What a fork()ed child finds.
 *
 * KVM binds a VM to the process that made it; a child has descriptors that refuse it, memory that it
 * would share with the parent's guest, locks that nobody will release, and no threads. So what is
 * the parent's is not mapped there (zero pages are in its place: a Python view of it shows zeros,
 * and its end unmaps nobody else's memory), and everything that has threads, locks, descriptors or
 * timers is told, before fork() returns. What it is told to do is to let go, quietly.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shim.h"

static struct shim_at_fork *first;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before(void)
{
	pthread_mutex_lock(&lock);
}

static void in_parent(void)
{
	pthread_mutex_unlock(&lock);
}

static void in_child(void)
{
	pthread_mutex_init(&lock, NULL);
	for (struct shim_at_fork *at_fork = first; at_fork; at_fork = at_fork->next)
		at_fork->in_child(at_fork);
}

static void set_up(void)
{
	pthread_atfork(before, in_parent, in_child);
}

/* Until shim_not_at_fork(). `in_child` neither adds nor takes away. */
void shim_at_fork(struct shim_at_fork *at_fork, void (*in_child)(struct shim_at_fork *at_fork))
{
	pthread_once(&once, set_up);
	at_fork->in_child = in_child;
	pthread_mutex_lock(&lock);
	at_fork->previous = NULL;
	at_fork->next = first;
	if (first)
		first->previous = at_fork;
	first = at_fork;
	pthread_mutex_unlock(&lock);
}

void shim_not_at_fork(struct shim_at_fork *at_fork)
{
	pthread_mutex_lock(&lock);
	if (at_fork->next)
		at_fork->next->previous = at_fork->previous;
	if (at_fork->previous)
		at_fork->previous->next = at_fork->next;
	else
		first = at_fork->next;
	pthread_mutex_unlock(&lock);
}

/* Zero pages where something was mapped, writable, nobody else's. 0 or -errno. */
int shim_blank(void *address, size_t size)
{
	return mmap(address, size, PROT_READ | PROT_WRITE,
		    MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED
		       ? -errno : 0;
}

/* ------------------------------------------------------------------ memory */

struct shim_unshared {
	struct shim_at_fork at_fork;
	void *address;
	size_t size;
};

static void blank(struct shim_at_fork *at_fork)
{
	const struct shim_unshared *unshared = (struct shim_unshared *)at_fork;

	shim_blank(unshared->address, unshared->size);
}

/* Pages of ours that children get zero pages for, until shim_share() forgets them. NULL: no memory,
 * or a mapping that the kernel will not keep from them. */
struct shim_unshared *shim_unshare(void *address, size_t size)
{
	struct shim_unshared *unshared = malloc(sizeof(*unshared));

	if (!unshared)
		return NULL;
	if (madvise(address, size, MADV_DONTFORK)) {
		free(unshared);
		return NULL;
	}
	unshared->address = address;
	unshared->size = size;
	shim_at_fork(&unshared->at_fork, blank);
	return unshared;
}

void shim_share(struct shim_unshared *unshared)
{
	if (!unshared)
		return;
	shim_not_at_fork(&unshared->at_fork);
	free(unshared);
}
