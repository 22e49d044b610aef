//! Process 1 of a virtual machine made by `podd_e2e::vm`; nobody else starts it.

fn main() {
    podd_e2e::vm::guest::main();
}
