"""Boot a Multiboot kernel with a command line and a module, and read its serial output.

The kernel comes with the package (native/guests/multiboot.S): it prints what the boot loader told
it, and ends with status 0.
"""

from kvmpy import guests
from kvmpy.machine import Machine


def main() -> None:
    machine = Machine(
        guests.load("multiboot.elf"),
        memory="16M",
        append="kernel answer=42",
        modules=[(b"These bytes are a boot module.\n", "notes.txt")],
    )
    with machine:
        outcome = machine.run(timeout=30)
        print(machine.serial.output.decode().replace("\r\n", "\n"), end="")
        print(f"ended by {outcome.ending}, status {outcome.status}")


if __name__ == "__main__":
    main()
