//! BAR 0: what reading and writing each register does. Base 2.0 §3.1.3.

use homi_spec::controller::{Cc, Csts, ShutdownNotification, ShutdownStatus};
use homi_spec::registers::{Aqa, CmbMsc, SUBSYSTEM_RESET, offset};

use crate::controller::{Controller, Life};
use crate::faults::{Fault, Trigger};
use crate::misuse::MisuseKind;
use crate::shared::{Effect, Shared};

/// CSTS.NSSRO.
const RESET_OCCURRED: u32 = 1 << 4;

/// Bytes of BAR 0 for this many I/O queues.
pub(crate) fn bar_len(io_queues: u16, stride: u64) -> u64 {
    let doorbells = (u64::from(io_queues) + 1) * 2 * stride;
    (offset::DOORBELLS as u64 + doorbells)
        .next_power_of_two()
        .max(0x4000)
}

const fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

const fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

const fn with_low(value: u64, half: u32) -> u64 {
    (value & !0xffff_ffff) | half as u64
}

const fn with_high(value: u64, half: u32) -> u64 {
    (value & 0xffff_ffff) | ((half as u64) << 32)
}

impl Controller {
    /// A 4-byte read at a valid offset.
    pub(crate) fn read(&mut self, shared: &mut Shared, at: u64) -> u32 {
        self.stats.registers += 1;
        let Ok(at) = usize::try_from(at) else { return 0 };
        if at >= offset::DOORBELLS {
            self.misuse(shared, MisuseKind::DoorbellRead { at: at as u64 });
            return 0;
        }
        let faults = shared.plan.event(self.function, &Trigger::Read(at as u64));
        self.apply(shared, &faults);
        let given = faults.iter().find_map(|fault| match fault {
            Fault::Value(value) => Some(*value),
            _ => None,
        });
        if let Some(value) = given {
            return value;
        }
        let cap = self.cap(&shared.config).0;
        match at {
            offset::CAP => low(cap),
            0x04 => high(cap),
            offset::VS => shared.config.version.0,
            offset::INTMS | offset::INTMC => {
                self.check_mask_access(shared);
                self.kept.mask
            }
            offset::CC => self.kept.cc.0,
            offset::CSTS => self.csts(shared).0,
            offset::AQA => self.kept.aqa.0,
            offset::ASQ => low(self.kept.asq),
            0x2c => high(self.kept.asq),
            offset::ACQ => low(self.kept.acq),
            0x34 => high(self.kept.acq),
            offset::CMBLOC => self.cmb_location(),
            offset::CMBSZ => self.cmb_size(),
            offset::CMBMSC => low(self.kept.cmbmsc),
            0x54 => high(self.kept.cmbmsc),
            offset::CMBSTS => u32::from(self.kept.cmb_bad),
            offset::CRTO => u32::from(shared.config.timeout_500ms),
            _ => 0,
        }
    }

    fn csts(&self, shared: &Shared) -> Csts {
        // A secondary controller that is offline says so by CFS. Base 2.0 §8.26.
        if self.is_offline(shared) {
            self.kept.csts.with_fatal(true)
        } else {
            self.kept.csts
        }
    }

    /// Whether this is a secondary controller that was not brought online.
    pub(crate) fn is_offline(&self, shared: &Shared) -> bool {
        self.function != 0 && !shared.sriov.is_online(self.function)
    }

    fn check_mask_access(&self, shared: &mut Shared) {
        if !self.vectors.is_empty() {
            self.misuse(shared, MisuseKind::InterruptMask);
        }
    }

    fn cmb_readable(&self) -> bool {
        self.kept.cmbmsc & CmbMsc::CRE != 0
    }

    fn cmb_location(&self) -> u32 {
        match &self.bus.cmb {
            // BIR 2; the offset is in units of 4 KiB, and was checked to fit.
            Some(cmb) if self.cmb_readable() => {
                2 | (u32::try_from(cmb.config.offset / 4096).unwrap_or(0) << 12)
            }
            _ => 0,
        }
    }

    fn cmb_size(&self) -> u32 {
        match &self.bus.cmb {
            Some(cmb) if self.cmb_readable() => {
                let config = &cmb.config;
                u32::from(config.submission_queues)
                    | (u32::from(config.completion_queues) << 1)
                    | (u32::from(config.lists) << 2)
                    | (u32::from(config.read_data) << 3)
                    | (u32::from(config.write_data) << 4)
                    | (u32::try_from(config.size / 4096).unwrap_or(0) << 12)
            }
            _ => 0,
        }
    }

    /// A 4-byte write at a valid offset.
    pub(crate) fn write(&mut self, shared: &mut Shared, at: u64, value: u32) {
        if self.is_offline(shared) {
            self.misuse(shared, MisuseKind::Offline { at });
            return;
        }
        if at >= offset::DOORBELLS as u64 {
            self.doorbell(shared, at, value);
            return;
        }
        self.stats.registers += 1;
        let Ok(register) = usize::try_from(at) else { return };
        match register {
            offset::INTMS => {
                self.check_mask_access(shared);
                self.kept.mask |= value;
            }
            offset::INTMC => {
                self.check_mask_access(shared);
                self.kept.mask &= !value;
            }
            offset::CC => self.configure(shared, Cc(value)),
            offset::CSTS if value & RESET_OCCURRED != 0 => self.kept.csts.0 &= !RESET_OCCURRED,
            offset::CSTS if value == 0 => {}
            offset::NSSR => {
                if value == SUBSYSTEM_RESET && shared.config.subsystem_reset {
                    shared.effects.push(Effect::SubsystemReset);
                }
            }
            offset::AQA | offset::ASQ | 0x2c | offset::ACQ | 0x34 => {
                if self.kept.cc.enabled() {
                    self.misuse(shared, MisuseKind::FixedWhileEnabled { at });
                    return;
                }
                match register {
                    offset::AQA => self.kept.aqa = Aqa(value & 0x0fff_0fff),
                    // The low 12 bits are reserved.
                    offset::ASQ => self.kept.asq = with_low(self.kept.asq, value & !0xfff),
                    0x2c => self.kept.asq = with_high(self.kept.asq, value),
                    offset::ACQ => self.kept.acq = with_low(self.kept.acq, value & !0xfff),
                    _ => self.kept.acq = with_high(self.kept.acq, value),
                }
            }
            offset::CMBMSC | 0x54 if self.bus.cmb.is_some() => {
                self.kept.cmbmsc = if register == offset::CMBMSC {
                    with_low(self.kept.cmbmsc, value & !0xffc)
                } else {
                    with_high(self.kept.cmbmsc, value)
                };
                self.place_cmb(shared);
            }
            _ => self.misuse(shared, MisuseKind::ReadOnly { at }),
        }
    }

    /// Answers to the buffer's address from now on, or no longer.
    fn place_cmb(&mut self, shared: &mut Shared) {
        let value = self.kept.cmbmsc;
        let base = value & !0xfff;
        let wanted = value & CmbMsc::CMSE != 0 && value & CmbMsc::CRE != 0;
        let Some(cmb) = &mut self.bus.cmb else { return };
        let fits = base.checked_add(cmb.config.size).is_some();
        cmb.base = (wanted && fits).then_some(base);
        self.kept.cmb_bad = wanted && !fits;
        if self.kept.cmb_bad {
            self.misuse(shared, MisuseKind::BadCmbBase { base });
        }
    }

    /// CC was written.
    fn configure(&mut self, shared: &mut Shared, new: Cc) {
        let old = self.kept.cc;
        let fixed = |cc: Cc| (cc.css(), cc.mps(), cc.ams());
        if old.enabled() && new.enabled() && fixed(old) != fixed(new) {
            let at = offset::CC as u64;
            self.misuse(shared, MisuseKind::FixedWhileEnabled { at });
            return;
        }
        self.kept.cc = new;
        match (old.enabled(), new.enabled()) {
            (false, true) => self.turn_on(shared),
            (true, false) => {
                // A controller that failed, or never becomes ready, may be given up.
                if matches!(self.life, Life::Enabling(left) if left != crate::faults::NEVER)
                    && !self.kept.csts.fatal()
                {
                    self.misuse(shared, MisuseKind::DisabledTooEarly);
                }
                self.disable(shared);
            }
            _ => {}
        }
        let asked = matches!(
            new.shutdown(),
            ShutdownNotification::Normal | ShutdownNotification::Abrupt
        );
        if asked && old.shutdown() != new.shutdown() && self.kept.csts.shutdown() == ShutdownStatus::Normal {
            self.begin_shutdown(shared);
        }
    }

    fn turn_on(&mut self, shared: &mut Shared) {
        let disabled = self.life == Life::Disabled && !self.kept.csts.ready();
        if !disabled {
            self.misuse(shared, MisuseKind::EnabledTooEarly);
            self.fail();
            return;
        }
        if self.is_shut() {
            // Shut down while it was disabled: taking the notification back is enough then.
            if self.kept.cc.shutdown() == ShutdownNotification::None && self.shutdown.is_none() {
                self.kept.csts = self.kept.csts.with_shutdown(ShutdownStatus::Normal);
            } else {
                self.misuse(shared, MisuseKind::EnabledAfterShutdown);
                self.fail();
                return;
            }
        }
        self.enable(shared);
    }
}
