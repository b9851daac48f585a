/* A few instructions tried outside of any guest: in root ring 3, in a child that may die of it. */
#define _GNU_SOURCE /* REG_TRAPNO and its like */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "measure.h"

#define PAGE 4096u
#define PAGE_FAULT 14
#define SECONDS 2 /* then it hangs */

/* One shared mapping: what became of it, memory for the code, the handler's stack and its own. */
struct arena {
	struct measure_host_try outcome;
	uint8_t scratch[PAGE - sizeof(struct measure_host_try)];
	uint8_t handler_stack[16 * PAGE];
	uint8_t stack[4 * PAGE];
};
_Static_assert(sizeof(struct arena) % PAGE == 0, "code follows on a page of its own");

static struct measure_host_try *noted; /* the child's: set in it, read by its signal handler */

static void note(int number, siginfo_t *info, void *context)
{
	const greg_t *at = ((const ucontext_t *)context)->uc_mcontext.gregs;

	(void)info;
	noted->signal = number;
	noted->vector = (uint32_t)at[REG_TRAPNO];
	noted->error_code = (uint32_t)at[REG_ERR];
	noted->address = (uint64_t)at[REG_CR2];
	noted->rax = (uint64_t)at[REG_RAX];
	noted->rdx = (uint64_t)at[REG_RDX];
	_exit(0);
}

static void catch_signals(const struct arena *arena)
{
	static const int caught[] = {SIGSEGV, SIGILL, SIGBUS, SIGFPE, SIGTRAP};
	const stack_t stack = {
		.ss_sp = (void *)arena->handler_stack,
		.ss_size = sizeof(arena->handler_stack),
	};
	struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	sigset_t all;

	sigaltstack(&stack, NULL);
	sigfillset(&action.sa_mask);
	for (size_t i = 0; i < sizeof(caught) / sizeof(*caught); i++)
		sigaction(caught[i], &action, NULL);
	signal(SIGALRM, SIG_DFL);
	sigfillset(&all);
	sigprocmask(SIG_UNBLOCK, &all, NULL);
	alarm(SECONDS);
}

/* As the guests start: RSP a stack, RSI memory, RDI where to report, RBX the operand. */
static _Noreturn void start(struct arena *arena, const uint8_t *report, const uint8_t *entry,
			    uint64_t operand)
{
	__asm__ volatile("mov %%rax, %%rsp; xor %%eax, %%eax; xor %%edx, %%edx; jmp *%%rcx"
			 :
			 : "a"(arena->stack + sizeof(arena->stack)), "b"(operand), "c"(entry),
			   "D"(report), "S"(arena->scratch)
			 : "rdx", "memory");
	__builtin_unreachable();
}

/* Runs `code` from offset `entry` in a child process, and waits for its end. It reports by a write
 * to RDI, where no memory is: then `reported` is set, and `rax` and `rdx` are what it left there.
 * `scratch`: what RSI points to. */
int measure_host_try(const void *code, uint32_t size, uint32_t entry, uint64_t operand,
		  const void *scratch, uint32_t scratch_size, struct measure_host_try *result)
{
	const size_t code_size = (size + PAGE - 1) / PAGE * PAGE;
	const size_t whole = sizeof(struct arena) + code_size + PAGE;
	struct arena *arena;
	uint8_t *program, *report;
	int status = 0;
	pid_t child;

	if (entry >= size || scratch_size > sizeof(arena->scratch))
		return -EINVAL;
	/* Below 2 GiB: far pointers have 32 bits. */
	arena = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_32BIT,
		     -1, 0);
	if (arena == MAP_FAILED)
		return -errno;
	program = (uint8_t *)(arena + 1);
	report = program + code_size;
	memcpy(program, code, size);
	memcpy(arena->scratch, scratch, scratch_size);
	if (mprotect(program, code_size, PROT_READ | PROT_EXEC) || mprotect(report, PAGE, PROT_NONE)) {
		status = -errno;
		goto out;
	}
	child = fork();
	if (child == 0) {
		noted = &arena->outcome;
		catch_signals(arena);
		start(arena, report, program + entry, operand);
	}
	if (child < 0) {
		status = -errno;
		goto out;
	}
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	*result = arena->outcome;
	result->reported = result->signal == SIGSEGV && result->vector == PAGE_FAULT &&
			   result->address == (uintptr_t)report;
	if (!result->signal && WIFSIGNALED(status))
		result->signal = WTERMSIG(status);
	status = 0;
out:
	munmap(arena, whole);
	return status;
}
