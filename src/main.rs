//! `mpcc`: the program. The only place that prints, reads the environment, or exits.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {}
