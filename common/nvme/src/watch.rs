//! [`Watch`]: the one thread that looks after a controller, for programs that do not call [`Controller::service`] themselves.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use homi_pci::Vector;

use crate::controller::Controller;
use crate::error::NvmeError;

/// A thread that calls [`Controller::service`], asleep while there is nothing to do. It ends when this is dropped, or with the controller.
pub struct Watch {
    stop: Arc<AtomicBool>,
    bell: Arc<Vector>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(controller: &Controller) -> Result<Self, NvmeError> {
        let inner = controller.inner();
        let (weak, clock) = (Arc::downgrade(inner), Arc::clone(&inner.clock));
        let (bell, function) = (Arc::clone(&inner.bell), Arc::clone(&inner.function));
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, rings) = (Arc::clone(&stop), Arc::clone(&bell));
        let thread = thread::Builder::new()
            .name("homi-nvme".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Acquire) {
                    // Taken before looking: what rings later is heard.
                    if let Err(error) = rings.take() {
                        tracing::warn!(%error, "a bell cannot be taken");
                    }
                    let (pause, vector) = match weak.upgrade() {
                        Some(inner) => {
                            let mut life = inner.lock();
                            let pause = inner.service(&mut life);
                            // Nobody takes the interrupts of a controller that is not ready: they would wake for ever.
                            (pause, life.admin_vector().filter(|_| life.ready().is_ok()))
                        }
                        None => return,
                    };
                    let mut wake = vec![rings.as_fd()];
                    wake.extend(vector.as_ref().map(|vector| vector.as_fd()));
                    // Once it said so, it stays readable.
                    let leaving = function.removal().filter(|_| pause < Duration::from_secs(1));
                    wake.extend(leaving);
                    clock.pause(pause, &wake);
                }
            })
            .map_err(NvmeError::Thread)?;
        Ok(Self {
            stop,
            bell,
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = self.bell.raise() {
            tracing::warn!(%error, "the thread that watches a controller could not be woken");
        }
        if let Some(thread) = self.thread.take()
            // The controller's last handle may go in its own watcher.
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the thread that watched a controller panicked");
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
