//! One body per test, one test per backend.

/// Runs each function, which takes a reactor, as a test per backend.
macro_rules! on_both_backends {
    ($($name:ident),* $(,)?) => {
        mod on_io_uring {
            use super::*;
            $(#[test] fn $name() {
                if let Some(reactor) = reactor_with(BackendChoice::IoUring, Options::default()) {
                    super::$name(reactor);
                }
            })*
        }
        mod on_readiness {
            use super::*;
            $(#[test] fn $name() {
                if let Some(reactor) = reactor_with(BackendChoice::Readiness, Options::default()) {
                    super::$name(reactor);
                }
            })*
        }
    };
}
