//! The `ringbouncer` program: arguments in, exit code out.

#[global_allocator]
static ALLOCATOR: ringbouncer::base::memory::Counted = ringbouncer::base::memory::Counted;

fn main() -> std::process::ExitCode {
    ringbouncer::cli::main()
}
