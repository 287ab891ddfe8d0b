//! Looking after a controller: completions of the admin queue, events, time-outs, failures; stopping it, and bringing it back.
//!
//! The order of a stop is what keeps memory safe: queues are told to ring no more; the controller is kept from memory (disabled, or its
//! function reset, or bus mastering ended); only then do queues and callers get their commands back.

use std::time::Duration;

use homi_spec::admin::Abort;
use homi_spec::controller::{ShutdownNotification, ShutdownStatus};

use crate::admin::Purpose;
use crate::error::NvmeError;
use crate::life::{Cause, Inner, Life, Quiet, State};
use crate::shared::Report;

/// How often a controller that is idle is looked at.
const IDLE: Duration = Duration::from_secs(1);

impl Inner {
    /// Keeps the controller from memory, by the gentlest means that works.
    pub(crate) fn quiesce(&self) -> Quiet {
        let disabled = self.disable();
        match disabled {
            Ok(()) => return Quiet::Disabled,
            Err(NvmeError::Removed) => {
                // If it is there after all, this keeps it from memory; if it is gone, it fails.
                let _ = self.function.set_bus_master(false);
                return Quiet::Gone;
            }
            Err(error) => {
                tracing::warn!(function = self.function.name(), %error, "the controller does not stop")
            }
        }
        match self.function.reset() {
            Ok(()) => return Quiet::Reset,
            Err(error) => {
                tracing::warn!(function = self.function.name(), %error, "the function cannot be reset")
            }
        }
        match self.function.set_bus_master(false) {
            Ok(()) => Quiet::Cut,
            Err(error) => {
                tracing::error!(
                    function = self.function.name(), %error,
                    "nothing keeps the controller from memory; what it may use is kept for ever"
                );
                Quiet::No
            }
        }
    }

    fn disable(&self) -> Result<(), NvmeError> {
        let timeout = self.ready_timeout();
        let (cc, csts) = (self.bar.cc(), self.bar.csts()?);
        if cc.enabled() {
            if !csts.ready() && !csts.fatal() {
                // CC.EN is not cleared before CSTS.RDY followed it (Base 2.0 §3.1.3.5). Where it never does, nothing would tell when the
                // controller has stopped.
                self.wait_for("become ready (CSTS.RDY = 1)", timeout, |csts| {
                    Ok(csts.ready() || csts.fatal())
                })?;
            }
            self.bar
                .set_cc(cc.with_enabled(false).with_shutdown(ShutdownNotification::None));
        }
        // A controller that failed may never have been ready: its fatal status goes when it has stopped.
        self.wait_for("stop (CSTS.RDY = 0)", timeout, |csts| {
            Ok(!csts.ready() && !csts.fatal())
        })
    }

    /// Stops the controller: afterwards every queue and every caller knows that its commands are over.
    pub(crate) fn stop(&self, life: &mut Life, cause: &Cause) {
        life.epoch += 1;
        life.stopped_by = cause.to_string();
        for queue in life.queues.values() {
            queue.shared.stop();
        }
        if let Some(cmb) = &life.cmb {
            cmb.forget_contents();
        }
        life.quiet = self.quiesce();
        let safe = life.quiet.is_safe();
        if life.quiet == Quiet::Reset {
            life.vectors.clear();
        }
        for (qid, queue) in &life.queues {
            queue.shared.lose(cause.reason(*qid), safe);
        }
        life.admin.drain(safe);
        if !safe {
            life.admin.leak();
            if let Some(shadow) = life.shadow.take() {
                shadow.leak();
            }
        }
    }

    /// Stops the controller and brings it back, if the options say so and it can be.
    pub(crate) fn recover(&self, life: &mut Life, cause: &Cause) {
        if life.state != State::Ready {
            return;
        }
        tracing::warn!(function = self.function.name(), %cause, "the controller is reset");
        self.stop(life, cause);
        match life.quiet {
            Quiet::Gone => life.state = State::Removed,
            _ if self.options.recover => self.restart(life),
            _ => life.state = State::Failed(cause.to_string()),
        }
    }

    /// Brings a stopped controller back.
    pub(crate) fn restart(&self, life: &mut Life) {
        life.resets += 1;
        let Err(first) = self.bring_up(life) else {
            return;
        };
        tracing::warn!(function = self.function.name(), error = %first, "the controller did not come back at first");
        let second = if matches!(first, NvmeError::Removed) {
            Err(first)
        } else {
            self.bring_up(life)
        };
        let Err(error) = second else { return };
        life.quiet = self.quiesce();
        life.admin.drain(life.quiet.is_safe());
        life.state = if life.quiet == Quiet::Gone || matches!(error, NvmeError::Removed) {
            State::Removed
        } else {
            State::Failed(error.to_string())
        };
    }

    /// The function is gone.
    fn removed(&self, life: &mut Life) {
        tracing::warn!(function = self.function.name(), "the controller was removed");
        life.stopped_by = Cause::Removed.to_string();
        life.state = State::Removed;
        self.stop(life, &Cause::Removed);
        // Whoever takes it away waits until nobody has it, which handles of the controller must not make take for ever.
        self.function.give_up();
    }

    /// Looks at the controller and processes admin completions.
    pub(crate) fn attend(&self, life: &mut Life) {
        if life.state != State::Ready {
            return;
        }
        match self.bar.csts() {
            Err(_) => return self.removed(life),
            Ok(csts) if csts.fatal() => return self.recover(life, &Cause::Fatal),
            Ok(csts) if !csts.ready() => return self.recover(life, &Cause::NotReady),
            Ok(_) => {}
        }
        if let Some(vector) = life.vectors.first()
            && let Err(error) = vector.take()
        {
            tracing::warn!(%error, "an interrupt cannot be taken");
        }
        if let Err(error) = life.admin.process(&self.bar) {
            let what = error.to_string();
            return self.recover(life, &Cause::Protocol { qid: 0, what });
        }
        self.request_events(life);
    }

    /// All periodic work; returns how long nothing has to be done.
    pub(crate) fn service(&self, life: &mut Life) -> Duration {
        if life.state == State::Ready && self.is_leaving() {
            self.removed(life);
        }
        self.attend(life);
        if life.state != State::Ready {
            return IDLE;
        }
        let broken = life.queues.iter().find_map(|(qid, queue)| {
            let what = queue.shared.broken()?;
            Some(Cause::Protocol { qid: *qid, what })
        });
        if let Some(cause) = broken {
            self.recover(life, &cause);
            return Duration::ZERO;
        }
        let now = self.clock.now();
        if life
            .admin
            .oldest(now)
            .is_some_and(|age| age >= self.options.admin_timeout)
        {
            let after = self.options.admin_timeout;
            self.recover(life, &Cause::Admin { after });
            return Duration::ZERO;
        }
        let Some(timeout) = self.options.command_timeout else {
            return IDLE;
        };
        let interval = (timeout.min(self.options.abort_timeout) / 4).clamp(Duration::from_millis(1), IDLE);
        let since = now.saturating_sub(life.looked);
        if since < interval {
            return interval - since;
        }
        life.looked = now;
        if let Some(cause) = self.look_for_timeouts(life, now, timeout) {
            self.recover(life, &cause);
            return Duration::ZERO;
        }
        interval
    }

    /// Aborts commands that take too long; returns a cause to stop if an Abort did as well.
    fn look_for_timeouts(&self, life: &mut Life, now: Duration, timeout: Duration) -> Option<Cause> {
        let abort_limit = life
            .info
            .as_ref()
            .map_or(1, |info| u16::from(info.identify.acl_z) + 1);
        let Life { queues, admin, .. } = life;
        for (qid, queue) in queues.iter_mut() {
            // All that is judged is what the queue's thread saw when it looked: since then, a command may have come to its end.
            let Some(Report { now: seen, late }) = queue.shared.take_report() else {
                continue;
            };
            queue.aborted.retain(|(aborted, _)| late.contains(aborted));
            for command in late {
                let age = seen.saturating_sub(command.since);
                let aborted = queue.aborted.iter().find(|(other, _)| *other == command);
                let too_late = match aborted {
                    Some((_, at)) => seen.saturating_sub(*at) >= self.options.abort_timeout,
                    // Too many others are being aborted.
                    None => age >= timeout + self.options.abort_timeout,
                };
                if too_late {
                    return Some(Cause::Timeout {
                        qid: *qid,
                        after: timeout,
                    });
                }
                if aborted.is_none() && admin.aborts < abort_limit {
                    let cid = command.id;
                    tracing::warn!(qid, cid, ?age, "a command takes too long and is aborted");
                    let abort = Abort { sqid: *qid, cid }.to_sqe(0);
                    if admin.submit(&self.bar, now, Purpose::Abort, abort, None).is_ok() {
                        queue.aborted.push((command, now));
                    }
                }
            }
        }
        // Not before it is known that the controller goes on: who is woken rings doorbells.
        for queue in queues.values() {
            queue.shared.ask();
        }
        None
    }

    /// Shuts the controller down in order, then stops it.
    pub(crate) fn shut_down(&self, life: &mut Life) {
        if matches!(life.state, State::ShutDown | State::Removed) {
            return;
        }
        if life.state == State::Ready {
            for queue in life.queues.values() {
                queue.shared.stop();
            }
            let cc = self.bar.cc();
            if cc.0 != u32::MAX && cc.enabled() {
                self.bar.set_cc(cc.with_shutdown(ShutdownNotification::Normal));
                let entry = life.info.as_ref().map_or(0, |info| info.identify.rtd3e.get());
                let timeout = self
                    .options
                    .shutdown_timeout
                    .max(Duration::from_micros(entry.into()))
                    .min(Duration::from_secs(300));
                let done = self.wait_for("shut down (CSTS.SHST)", timeout, |csts| {
                    Ok(csts.shutdown() == ShutdownStatus::Complete || csts.fatal())
                });
                if let Err(error) = done {
                    tracing::warn!(function = self.function.name(), %error, "the controller was not shut down in order");
                }
            }
        }
        life.state = State::ShutDown;
        self.stop(life, &Cause::ShutDown);
        if life.quiet == Quiet::Gone {
            life.state = State::Removed;
        } else if let Err(error) = self.function.set_bus_master(false) {
            tracing::warn!(function = self.function.name(), %error, "bus mastering cannot be ended");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut life = self.lock();
        self.shut_down(&mut life);
        drop(life);
        self.bell_for_the_last_time();
    }
}

impl Inner {
    fn bell_for_the_last_time(&self) {
        if let Err(error) = self.bell.raise() {
            tracing::warn!(%error, "a thread that watches the controller could not be woken");
        }
    }
}
