//! Ctrl-C: the first ends the measurement and shows what came of it so far, the second ends the process.

use std::ops::ControlFlow;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Notices the first interrupt.
pub(crate) struct Interrupt(Option<SignalFd>);

impl Interrupt {
    /// Takes interrupts over, in this thread and those that it starts from now on. Where that is not wanted or not possible, an interrupt
    /// ends the process as usual.
    pub(crate) fn new(wanted: bool) -> Self {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let descriptor = wanted
            .then(|| SignalFd::with_flags(&mask(), flags).ok())
            .flatten();
        Self(descriptor.filter(|_| mask().thread_block().is_ok()))
    }

    /// Whether to go on measuring.
    pub(crate) fn answer(&mut self) -> ControlFlow<()> {
        let came = self
            .0
            .as_ref()
            .is_some_and(|signals| matches!(signals.read_signal(), Ok(Some(_))));
        if !came {
            return ControlFlow::Continue(());
        }
        self.give_back();
        ControlFlow::Break(())
    }

    fn give_back(&mut self) {
        if self.0.take().is_some() {
            // It was blocked by the same call, which fails for unknown operations only.
            let _ = mask().thread_unblock();
        }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn mask() -> SigSet {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGINT);
    mask
}
