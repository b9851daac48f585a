/*
 * Getting a vCPU out of the guest.
 *
 * A kick is a flag and a signal. KVM looks at kvm_run.immediate_exit once, on entry; a signal
 * alone could arrive just before that entry and be gone. So the flag is set first, and the signal
 * follows, directed at the thread: either the entry sees the flag or the guest is interrupted by
 * the signal (KVM API, "5. The kvm_run structure", immediate_exit).
 *
 * Deadlines are a POSIX timer that sends the same signal to the thread; the handler sets the flag
 * of the vCPU that this thread is running, found through a thread-local.
 *
 * Ctrl-C: CPython's own handler only notes the signal, and the note is looked at between
 * bytecodes, which a thread inside KVM_RUN never reaches. So while vCPUs run, SIGINT and SIGTERM
 * pass through our handler, which gets every running vCPU out and then calls the handler that was
 * there before.
 *
 * Other signals with a handler (SIGALRM, SIGUSR1 ...) interrupt KVM_RUN by themselves, but not one
 * that is only about to begin. They pass through our handler too: it sets the flag of the vCPU that
 * the main thread, where Python runs its handlers, is about to enter or in.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

#define MAX_RUNNING 4096

/* initial-exec: a signal handler must not run into the lazy allocation of a TLS block. */
#define HANDLER_TLS _Thread_local __attribute__((tls_model("initial-exec")))

static HANDLER_TLS struct shim_vcpu *current;
static HANDLER_TLS int self;
static HANDLER_TLS uint64_t serial; /* of this thread: kernel ids are used again */
static HANDLER_TLS int own_slot; /* among the running threads */
static HANDLER_TLS volatile sig_atomic_t noted; /* a signal found no vCPU on this thread */

/* What a signal handler needs to know of other threads cannot be thread-local: the kernel ids of
 * the threads inside shim_run(), and the handlers that stood before ours. */
static _Atomic int running[MAX_RUNNING];
static _Atomic int running_end; /* no running thread at or above this index */
static int kick_signal;
/* The first two end every run; the others let the main thread's run see to Python's handlers. */
static const int forwarded[] = { SIGINT, SIGTERM, SIGALRM, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD,
				 SIGVTALRM, SIGPROF, SIGQUIT, SIGPOLL, SIGPWR, SIGXCPU, SIGWINCH,
				 SIGCONT, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG };
#define FORWARDED (sizeof(forwarded) / sizeof(forwarded[0]))
#define ENDING 2
/*
 * The handlers that stood before ours, each passed to by a handler of ours of its own: a handler
 * that was put on top of ours may chain to it (faulthandler's does), or be taken away again, which
 * brings ours back. Both must reach what stood there then, not the newest.
 */
#define LEVELS 8
static struct sigaction previous[FORWARDED][LEVELS];
static unsigned levels[FORWARDED];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

int64_t shim_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* The calling thread's kernel id. */
int shim_kick_thread(void)
{
	if (!self)
		self = syscall(SYS_gettid);
	return self;
}

static void in_child(struct shim_at_fork *at_fork)
{
	(void)at_fork;
	pthread_mutex_init(&lock, NULL);
	self = 0;
	current = NULL;
	for (int i = 0; i < MAX_RUNNING; i++)
		atomic_store(&running[i], 0);
}

static void on_kick(int signal_number, siginfo_t *info, void *context)
{
	struct shim_vcpu *vcpu = current;

	(void)signal_number, (void)context;
	if (!vcpu) {
		noted = 1; /* it has left the loop meanwhile: shim_kick()'s flag is still there */
		return;
	}
	if (info->si_code == SI_QUEUE)
		atomic_store(&vcpu->signalled, info->si_value.sival_int);
	vcpu->run->immediate_exit = 1;
	atomic_fetch_add(&vcpu->gate, 1); /* it may be about to wait, not to enter */
}

/* Async-signal-safe. Signal queues can be full; a plain signal still gets the vCPU out. */
static void interrupt_thread(int thread, int number)
{
	siginfo_t info;

	memset(&info, 0, sizeof(info));
	info.si_code = SI_QUEUE;
	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_int = number;
	if (syscall(SYS_rt_tgsigqueueinfo, getpid(), thread, kick_signal, &info) < 0)
		syscall(SYS_tgkill, getpid(), thread, kick_signal);
}

static unsigned index_of(int number)
{
	unsigned i = 0;

	while (forwarded[i] != number)
		i++;
	return i;
}

static void pass_on(unsigned level, int number, siginfo_t *info, void *context)
{
	int saved = errno, end = atomic_load(&running_end), main_thread = getpid();
	unsigned which = index_of(number);
	const struct sigaction *before = &previous[which][level];

	for (int i = 0; i < end; i++) {
		int thread = atomic_load(&running[i]);

		if (!thread || thread == shim_kick_thread())
			continue;
		if (which < ENDING)
			interrupt_thread(thread, number);
		else if (thread == main_thread)
			syscall(SYS_tgkill, main_thread, main_thread, kick_signal);
	}
	/* On this thread KVM_RUN ends with EINTR, and Python gets to run its handler. */
	if (current) {
		current->run->immediate_exit = 1;
		atomic_fetch_add(&current->gate, 1);
	} else {
		noted = 1;
	}
	if (before->sa_flags & SA_SIGINFO)
		before->sa_sigaction(number, info, context);
	else
		before->sa_handler(number);
	errno = saved;
}

#define ON_FORWARDED(level)                                                     \
	static void on_forwarded_##level(int number, siginfo_t *info, void *context) \
	{                                                                            \
		pass_on(level, number, info, context);                               \
	}
ON_FORWARDED(0)
ON_FORWARDED(1)
ON_FORWARDED(2)
ON_FORWARDED(3)
ON_FORWARDED(4)
ON_FORWARDED(5)
ON_FORWARDED(6)
ON_FORWARDED(7)
static void (*const ours[LEVELS])(int, siginfo_t *, void *) = {
	on_forwarded_0, on_forwarded_1, on_forwarded_2, on_forwarded_3,
	on_forwarded_4, on_forwarded_5, on_forwarded_6, on_forwarded_7,
};

static bool is_function(const struct sigaction *action)
{
	return (action->sa_flags & SA_SIGINFO) ||
	       (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN);
}

static bool is_ours(const struct sigaction *action)
{
	for (unsigned level = 0; level < LEVELS; level++)
		if ((action->sa_flags & SA_SIGINFO) && action->sa_sigaction == ours[level])
			return true;
	return false;
}

/* Where `action` stands among those before ours, put there if it is new; LEVELS: no room. */
static unsigned level_of(unsigned i, const struct sigaction *action)
{
	unsigned level = 0;

	while (level < levels[i] && (previous[i][level].sa_sigaction != action->sa_sigaction ||
				     (previous[i][level].sa_flags ^ action->sa_flags) & SA_SIGINFO))
		level++;
	if (level == levels[i] && level < LEVELS) {
		previous[i][level] = *action; /* before it can be called */
		levels[i]++;
	}
	return level;
}

/* Python's signal.signal() replaces our handler without a word, so look again at every run. */
static void forward(unsigned i)
{
	struct sigaction now, action;
	unsigned level;

	if (sigaction(forwarded[i], NULL, &now) || !is_function(&now) || is_ours(&now))
		return;
	pthread_mutex_lock(&lock);
	level = level_of(i, &now);
	if (level < LEVELS) {
		action = now;
		action.sa_flags |= SA_SIGINFO;
		action.sa_sigaction = ours[level];
		sigaction(forwarded[i], &action, NULL);
	}
	pthread_mutex_unlock(&lock);
}

static int init_locked(void)
{
	static struct shim_at_fork at_fork;
	struct sigaction action;

	if (kick_signal)
		return 0;
	for (int number = SIGRTMIN + 1; number <= SIGRTMAX; number++) {
		if (sigaction(number, NULL, &action))
			return -errno;
		if (is_function(&action) || action.sa_handler != SIG_DFL)
			continue; /* somebody else's */
		memset(&action, 0, sizeof(action));
		action.sa_flags = SA_SIGINFO; /* no SA_RESTART: a blocked write must end too */
		action.sa_sigaction = on_kick;
		sigemptyset(&action.sa_mask);
		if (sigaction(number, &action, NULL))
			return -errno;
		shim_at_fork(&at_fork, in_child);
		kick_signal = number;
		return 0;
	}
	return -EBUSY;
}

int shim_kick_init(void)
{
	int error;

	pthread_mutex_lock(&lock);
	error = init_locked();
	pthread_mutex_unlock(&lock);
	return error;
}

int shim_kick_signal(void)
{
	return kick_signal;
}

/* Any thread, any time before shim_vcpu_free(). A kick of a vCPU that is not running ends its
 * next run at once; kicks do not add up. */
void shim_kick(struct shim_vcpu *vcpu)
{
	atomic_store(&vcpu->kicked, 1);
	shim_get_out(vcpu);
	if (atomic_load(&vcpu->pauses))
		shim_move_gate(vcpu);
}

/* What it is to get out for is to be seen before this. */
void shim_get_out(struct shim_vcpu *vcpu)
{
	int thread;

	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	thread = atomic_load(&vcpu->thread);
	if (thread)
		syscall(SYS_tgkill, getpid(), thread, kick_signal);
}

/* From here on signals to this thread are about the vCPU. */
static void attend(struct shim_vcpu *vcpu)
{
	int slot;

	current = vcpu;
	for (slot = 0; slot < MAX_RUNNING; slot++) {
		int expected = 0;

		if (atomic_compare_exchange_strong(&running[slot], &expected, self))
			break;
	}
	own_slot = slot;
	/* Beyond MAX_RUNNING threads Ctrl-C reaches the main thread only. */
	for (int end = atomic_load(&running_end); slot < MAX_RUNNING && slot >= end;)
		if (atomic_compare_exchange_weak(&running_end, &end, slot + 1))
			break;
}

void shim_kick_ignore(void)
{
	if (own_slot < MAX_RUNNING)
		atomic_store(&running[own_slot], 0);
	current = NULL;
}

/* The thread takes the vCPU: from here on kicks and timers reach it. -EBUSY: another has it. */
int shim_kick_enter(struct shim_vcpu *vcpu)
{
	int expected = 0;

	if (!atomic_compare_exchange_strong(&vcpu->thread, &expected, shim_kick_thread()))
		return -EBUSY;
	attend(vcpu);
	return 0;
}

void shim_kick_leave(struct shim_vcpu *vcpu)
{
	shim_kick_ignore();
	atomic_store(&vcpu->thread, 0);
}

/* The thread waits for the vCPU, which others may take meanwhile: signals are to end the wait. True
 * if one came before. */
bool shim_kick_attend(struct shim_vcpu *vcpu)
{
	bool was_noted;

	shim_kick_thread();
	attend(vcpu);
	was_noted = noted;
	noted = 0;
	return was_noted;
}

/* Looking at a signal's action costs a system call: a handler for one of those that do not end runs
 * may be found this much later. */
#define LOOK_AGAIN_NS 1000000

void shim_kick_forward(void)
{
	static _Atomic int64_t looked;
	sigset_t kick;
	int64_t now;

	/* Threads of daemons block all signals, and masks are inherited; this one is ours alone, and
	 * budgets, kicks, pauses and close() come by it. */
	sigemptyset(&kick);
	sigaddset(&kick, kick_signal);
	pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
	for (unsigned i = 0; i < ENDING; i++)
		forward(i);
	now = shim_now();
	if (self != getpid() || now - atomic_load(&looked) < LOOK_AGAIN_NS)
		return;
	atomic_store(&looked, now);
	for (unsigned i = ENDING; i < FORWARDED; i++)
		forward(i);
}

/* The run is about to enter the guest: a signal that came since Python last looked is to be seen
 * to first. One that Python has seen to costs an entry that comes straight back. */
void shim_kick_recall(struct shim_vcpu *vcpu)
{
	if (!noted)
		return;
	noted = 0;
	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
}

static int timer_for_this_thread(struct shim_vcpu *vcpu)
{
	static _Atomic uint64_t last_serial;
	struct sigevent event;

	if (!serial)
		serial = atomic_fetch_add(&last_serial, 1) + 1;
	if (vcpu->timer_thread == serial)
		return 0;
	if (vcpu->timer_thread)
		timer_delete(vcpu->timer);
	vcpu->timer_thread = 0;
	memset(&event, 0, sizeof(event));
	event.sigev_notify = SIGEV_THREAD_ID;
	event.sigev_signo = kick_signal;
	event._sigev_un._tid = self;
	if (timer_create(CLOCK_MONOTONIC, &event, &vcpu->timer))
		return -errno;
	vcpu->timer_thread = serial;
	return 0;
}

/* Have the thread interrupted at the nearer of the run's deadline and the sinks' flush time; with
 * neither, stop the timer. Called by the running thread only. */
int shim_kick_arm(struct shim_vcpu *vcpu)
{
	int64_t at = vcpu->deadline;
	struct itimerspec when = { 0 };
	int error;

	if (vcpu->flush_at && (!at || vcpu->flush_at < at))
		at = vcpu->flush_at;
	if (at == vcpu->armed_for)
		return 0;
	error = timer_for_this_thread(vcpu);
	if (error)
		return error;
	when.it_value.tv_sec = at / 1000000000;
	when.it_value.tv_nsec = at % 1000000000;
	if (timer_settime(vcpu->timer, TIMER_ABSTIME, &when, NULL))
		return -errno;
	vcpu->armed_for = at;
	return 0;
}

/* As ps and top show it; 15 bytes of it. */
void shim_name_thread(const char *name)
{
	prctl(PR_SET_NAME, name);
}

int shim_ioctl(int fd, unsigned long request, uintptr_t argument)
{
	int result = ioctl(fd, request, argument);

	return result < 0 ? -errno : result;
}

/* The same for a pointer: cffi hands one over without a detour through an integer. */
int shim_ioctl_with(int fd, unsigned long request, void *argument)
{
	return shim_ioctl(fd, request, (uintptr_t)argument);
}
