# The two commands:  make boot [KERNEL=path]   make test
# Everything is built and run in .venv; what the system lacks is installed when root, named when not.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
KERNEL ?= demo
ARGS   ?=
PIP    := $(BIN)/python -m pip install -q --disable-pip-version-check
BUILD_INPUTS := setup.py pyproject.toml $(wildcard native/*.* native/*/*.*)
NATIVE_C := $(wildcard native/*/*.c)
NATIVE_H := $(addprefix -I,$(sort $(dir $(wildcard native/*/*.h))))

.DEFAULT_GOAL := help
.PHONY: help boot build bench bench-linux test test-all test-fast test-fast-unit test-fast-kvm \
	test-host test-unit test-rest test-svm test-svm-core test-svm-rest test-svm-new test-vmx test-vmx-core \
	test-vmx-rest test-vmx-restricted test-linux-svm test-linux-vmx api-coverage test-asan \
	test-valgrind lint clean

help:
	@echo "make boot [KERNEL=path] [ARGS='--memory 1G ...']   boot the demo kernel, or an image"
	@echo "make test       this host, and what differs on kvm_amd (in QEMU) and kvm_intel (in Bochs)"
	@echo "make test-all   everything: also all tests on both, and Debian's kernels as guests there"
	@echo "make test-fast  under a minute      make test-svm, test-vmx  all tests on one rig"
	@echo "make api-coverage  every ioctl, exit and capability, and which run proved it"
	@echo "make test-asan  the shim under ASan and UBSan       make test-valgrind  under memcheck"
	@echo "make bench      figures             make bench-linux  beside QEMU, on the SVM rig"
	@echo "make lint       ruff, imports, mypy, C warnings"

# ---- set-up

$(VENV)/.made:
	@PYTHON=$(PYTHON) sh tests/setup.sh
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) 'setuptools>=68' wheel 'cffi>=1.17'
	@touch $@

$(VENV)/.built: $(VENV)/.made $(BUILD_INPUTS)
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.test: $(VENV)/.built
	@$(PIP) --no-build-isolation -e '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.built
	@$(PIP) --no-build-isolation -e '.[lint]'
	@touch $@

build: $(VENV)/.built

# ---- run

boot: $(VENV)/.built
	@$(BIN)/python -m kvmpy boot $(KERNEL) $(ARGS)

bench: $(VENV)/.test
	@mkdir -p results
	$(BIN)/python tests/bench/run.py --json results/bench.json $(ARGS)

# kvmpy as users have it: installed from a wheel, in an environment with nothing else.
bench-linux: $(VENV)/.test
	@rm -rf build
	@$(PYTHON) -m venv --without-pip build/bench
	@$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w build/wheel .
	@$(BIN)/python -m pip --python build/bench/bin/python install -q build/wheel/*.whl
	$(RIG) svm --linux-guests --memory 3072 -- \
		python tests/bench/peers.py --python build/bench/bin/python $(ARGS)

# ---- check
# The rigs run the same tests on real kvm_amd (in QEMU) and real kvm_intel (in Bochs), emulated and so
# ten to fifty times slower than the machine. `make test` runs there what differs between modules;
# `make test-rest` the rest, and Debian's kernels as guests; `make test-all` both.

PYTEST   := $(BIN)/python -m pytest
RIG      := $(PYTHON) tests/rigs/run.py
# Files of tests by name, whatever room they are in.
tests = $(foreach name,$(2),$(or $(wildcard tests/$(1)/test_$(name).py tests/$(1)/*/test_$(name).py),\
	$(error no tests/$(1)/.../test_$(name).py)))
VMX_CORE = $(call tests,kvm,memory_slots mmio budgets timeouts interrupts modes syscalls hypercalls msrs \
	run_page breakpoints virtio platform)
SVM_CORE = $(VMX_CORE) $(call tests,kvm,memory_dirty ports completion handlers claims batches pause \
	msrs_in_user_space virtio_rights cpuid ioctls enabling stepping translate)
# Each of their tests starts Python processes: no module makes a difference to that, and Bochs takes
# minutes for it.
VMX_LEFT_OUT = $(call tests,kvm,boot_command probe signals examples readme pytest_plugin)

# Two judges. The table: a failed test, or a run that left no results, fails it. API coverage: an
# ioctl of x86 that is missing, or that no test ever made.
# "kvm_amd_new" is kvm_amd of Linux 6.12. "restricted" is kvm_intel without unrestricted guest, as
# before 2010: real mode in VM86 tasks.
RUNS := unit=results/unit.xml host=results/host.xml kvm_amd=results/svm-core.xml \
	kvm_intel=results/vmx-core.xml
REST := kvm_amd=results/svm-rest.xml kvm_amd_new=results/svm-new.xml kvm_intel=results/vmx-rest.xml \
	restricted=results/vmx-restricted.xml linux_amd=results/linux-svm.xml \
	linux_intel=results/linux-vmx.xml
COVERAGE := $(BIN)/python tests/api/coverage.py
SUBMAKE  := $(MAKE) --no-print-directory -k -j2

# Two processes at a time: the rigs use one CPU each. The unit tests' output comes when they are done.
test: $(VENV)/.test
	@echo "kvmpy: tests on this host, then on both rigs: about six minutes with two free CPUs"
	@mkdir -p results; rm -f results/*.xml
	@status=0; \
	$(SUBMAKE) test-host test-unit || status=1; \
	$(SUBMAKE) test-vmx-core test-svm-core || status=1; \
	$(PYTHON) tests/rigs/table.py $(RUNS) || status=1; exit $$status

# The slowest first. Its API coverage needs what `make test` left.
test-rest: $(VENV)/.test
	@mkdir -p results
	@status=0; \
	$(SUBMAKE) test-vmx-rest test-svm-rest test-linux-svm test-linux-vmx test-svm-new \
		test-vmx-restricted || status=1; \
	$(PYTHON) tests/rigs/table.py $(RUNS) $(REST) || status=1; \
	$(COVERAGE) --brief $(RUNS) $(REST) || status=1; exit $$status

test-all:
	@status=0; $(MAKE) --no-print-directory test || status=1; \
	$(MAKE) --no-print-directory test-rest || status=1; exit $$status

test-host: $(VENV)/.test
	$(PYTEST) --junitxml=results/host.xml tests/kvm $(ARGS)

test-unit: $(VENV)/.test
	@$(PYTEST) -q --junitxml=results/unit.xml tests/unit $(ARGS) >results/unit.log 2>&1; \
	status=$$?; cat results/unit.log; exit $$status

# Without what starts many processes of its own, pytest in pytest, compilers and shells, and what
# watches or measures for seconds.
FAST_LEFT_OUT = $(addprefix --ignore ,$(call tests,kvm,pytest_plugin sched watch bench_exits \
	kick_stress) $(call tests,unit,native plugin_without_kvm shell))
# Two processes, one for each CPU; each's output comes when it is done.
test-fast: $(VENV)/.test
	@$(MAKE) --no-print-directory -j2 -k --output-sync=target test-fast-unit test-fast-kvm

test-fast-unit test-fast-kvm: test-fast-%: $(VENV)/.test
	HYPOTHESIS_PROFILE=fast KVMPY_VIRTIO_ROUNDS=500 $(PYTEST) -q tests/$* -m 'not slow' $(ARGS) \
		$(FAST_LEFT_OUT)

test-svm test-vmx: test-%: $(VENV)/.test
	$(RIG) $* --optional --junit results/$*.xml -- python -m pytest tests/kvm -q -m 'not slow'

test-svm-core: $(VENV)/.test
	$(RIG) svm --optional --junit results/svm-core.xml -- python -m pytest -q -m 'not slow' $(SVM_CORE)

test-svm-rest: $(VENV)/.test
	$(RIG) svm --optional --junit results/svm-rest.xml -- python -m pytest tests/kvm -q -m 'not slow' \
		$(addprefix --ignore ,$(SVM_CORE))

test-vmx-core: $(VENV)/.test
	$(RIG) vmx --optional --junit results/vmx-core.xml -- python -m pytest -q -m 'not slow' $(VMX_CORE)

test-vmx-rest: $(VENV)/.test
	$(RIG) vmx --optional --junit results/vmx-rest.xml -- python -m pytest tests/kvm -q -m 'not slow' \
		$(addprefix --ignore ,$(VMX_CORE) $(VMX_LEFT_OUT))

# What has changed between the kernels: state, memory, exits, capabilities.
test-svm-new: $(VENV)/.test
	$(RIG) svm --kernel linux-image-6.12-amd64 --optional --junit results/svm-new.xml -- \
		python -m pytest -q -m 'not slow' $(call tests,kvm,memory_dirty memory_private memory_slots \
		vcpu_state save_restore cpuid ioctls enabling hypercalls hyperv xen interrupts \
		msrs_in_user_space pmu modes binary_stats docstring_examples) \
		--deselect $(call tests,kvm,save_restore)::test_string_output

test-vmx-restricted: $(VENV)/.test
	$(RIG) vmx --optional --junit results/vmx-restricted.xml \
		--kernel-arguments kvm_intel.unrestricted_guest=0 -- python -m pytest -q \
		$(call tests,kvm,kernel_log modes exceptions syscalls)

# Guests with Debian's kernels, unmodified. Bochs takes a minute for each: six.
test-linux-svm: $(VENV)/.test
	$(RIG) svm --optional --linux-guests --memory 3072 --junit results/linux-svm.xml -- \
		python -m pytest -q tests/kvm/linux

test-linux-vmx: $(VENV)/.test
	$(RIG) vmx --optional --linux-guests --junit results/linux-vmx.xml -- \
		python -m pytest -q $(call tests,kvm,linux_boot linux_disk) \
		-k 'shell_and_power_off or two_cpus or file_system or several_disks or rng'

# With the results of the last runs, if there are any.
api-coverage: $(VENV)/.test
	@$(COVERAGE) $(RUNS) $(REST) $(ARGS)

# The shim alone, with a scripted KVM and with the real one, under the sanitizers and memcheck.
NATIVE_TESTS = $(call tests,unit,native) $(call tests,kvm,kick_stress)

test-asan: $(VENV)/.test
	KVMPY_NATIVE_CFLAGS='-fsanitize=address,undefined -fno-sanitize-recover=all' \
		KVMPY_KICKS=20000 $(PYTEST) $(NATIVE_TESTS)

test-valgrind: $(VENV)/.test
	KVMPY_NATIVE_RUNNER='valgrind -q --error-exitcode=9 --leak-check=full' \
		KVMPY_KICKS=2000 $(PYTEST) $(NATIVE_TESTS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/mypy --strict examples
	$(CC) -std=gnu11 -O2 -Wall -Wextra -Werror -fsyntax-only $(NATIVE_H) $(NATIVE_C)

clean:
	rm -rf $(VENV) build dist results kvmpy.egg-info kvmpy/_native.c kvmpy/_measure.c kvmpy/*.so \
		kvmpy/guests/*.elf kvmpy/guests/*.bin
