//! The controller's properties and the life that CC and CSTS describe. Base 2.0 §3.1.3 and §3.5.
//!
//! Disabling and shutting down first have to get rid of the I/O queues, whose connections the runtime closes; until
//! the last one is gone, CSTS says so (RDY still set, SHST "occurring"), as on a drive that finishes its work.
//!
//! Not implemented: NSSR and NSSD (CAP.NSSRS and CAP.NSSS are 0), and readiness independent of media.

use super::CloseReason;
use super::refusal::Refusal;
use homi_spec::Status;
use homi_spec::controller::{Cap, Cc, Csts, ShutdownNotification, ShutdownStatus, Version};
use homi_spec::fabrics::{Property, PropertyGet, PropertySet, PropertySize};

/// CAP.TO and CRTO.CRWMT: how long enabling and disabling may take, in units of 500 ms.
const READY_TIMEOUT_500MS: u8 = 30;
/// CAP.CSS bit 0: the NVM command set.
const CSS_NVM: u8 = 1 << 0;
/// CAP.CSS bit 6: the command sets that Identify with CNS 1Ch lists.
const CSS_LISTED: u8 = 1 << 6;
/// Largest memory page that CC.MPS may select, as 2^(12 + this): it has no meaning over fabrics, so hosts with
/// 64 KiB pages may say so.
const MPSMAX: u8 = 4;
/// The version of the base specification that controllers claim.
pub(super) const VERSION: Version = Version::V2_0;

/// Byte of a Property Set at which the value begins, for the error log.
const VALUE_OFFSET: u8 = 48;
/// Byte of a property command that holds the property's offset.
const OFFSET_OFFSET: u8 = 44;

/// What a Property Set asks the association to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// The controller is ready from now on.
    Enabled,
    /// The I/O queues have to go, then [`Properties::drained`] is due. A reset also forgets features and events.
    Drain {
        /// Why.
        reason: CloseReason,
        /// Whether the controller is being reset.
        reset: bool,
    },
}

/// CAP, VS, CC, CSTS and CRTO of one controller.
#[derive(Debug, Clone)]
pub(super) struct Properties {
    cap: Cap,
    cc: Cc,
    csts: Csts,
    resetting: bool,
    shutting_down: bool,
}

impl Properties {
    /// A controller that was just created: disabled.
    pub(super) fn new(max_queue_entries: u32, discovery: bool) -> Self {
        let css = if discovery { CSS_NVM } else { CSS_NVM | CSS_LISTED };
        let mqes_z = u16::try_from(max_queue_entries.saturating_sub(1)).unwrap_or(u16::MAX);
        let cap = Cap::default()
            .with_mqes_z(mqes_z)
            .with_contiguous_queues(true)
            .with_timeout_500ms(READY_TIMEOUT_500MS)
            .with_command_sets(css)
            .with_page_sizes(0, MPSMAX)
            .with_ready_with_media(true);
        Self {
            cap,
            cc: Cc::default(),
            csts: Csts::default(),
            resetting: false,
            shutting_down: false,
        }
    }

    /// Whether admin commands other than fabrics commands are executed. A failed controller still tells what happened.
    pub(super) fn accepts_admin(&self) -> bool {
        self.cc.enabled() && self.csts.ready() && self.csts.shutdown() == ShutdownStatus::Normal
    }

    /// Whether I/O commands are executed.
    pub(super) fn is_ready(&self) -> bool {
        self.accepts_admin() && !self.csts.fatal()
    }

    /// Whether CC selects the queue entry sizes that exist: 64 and 16 bytes.
    pub(super) fn has_entry_sizes(&self) -> bool {
        self.cc.iosqes() == 6 && self.cc.iocqes() == 4
    }

    pub(super) fn cc(&self) -> Cc {
        self.cc
    }

    pub(super) fn csts(&self) -> Csts {
        self.csts
    }

    /// The controller failed for good: only a reset helps.
    pub(super) fn fail(&mut self) {
        self.csts = self.csts.with_fatal(true);
    }

    /// Property Get: Base 2.0 §6.5.
    pub(super) fn get(&self, command: PropertyGet) -> Result<u64, Refusal> {
        check_size(command.property, command.size)?;
        Ok(match command.property {
            Property::CAP => self.cap.0,
            Property::VS => VERSION.0.into(),
            Property::CC => self.cc.0.into(),
            Property::CSTS => self.csts.0.into(),
            Property::CRTO => READY_TIMEOUT_500MS.into(),
            _ => return Err(Refusal::at(Status::INVALID_FIELD, OFFSET_OFFSET)),
        })
    }

    /// Property Set: Base 2.0 §6.6. CC is the only property that can be written.
    pub(super) fn set(&mut self, command: PropertySet) -> Result<Change, Refusal> {
        check_size(command.property, command.size)?;
        if command.property != Property::CC {
            return Err(Refusal::at(Status::INVALID_FIELD, OFFSET_OFFSET));
        }
        let [a, b, c, d, ..] = command.value.to_le_bytes();
        self.set_cc(Cc(u32::from_le_bytes([a, b, c, d])))
    }

    fn set_cc(&mut self, new: Cc) -> Result<Change, Refusal> {
        let old = self.cc;
        let invalid = Refusal::at(Status::INVALID_FIELD, VALUE_OFFSET);
        if new.shutdown() == ShutdownNotification::Reserved {
            return Err(invalid);
        }
        if new.enabled() {
            self.check_configuration(new).ok_or(invalid)?;
            // Base 2.0 §3.1.3.5: these may change only while the controller is disabled.
            let fixed = |cc: Cc| (cc.css(), cc.mps(), cc.ams());
            if old.enabled() && fixed(new) != fixed(old) {
                return Err(invalid);
            }
            if !old.enabled() && (self.resetting || self.shutting_down) {
                // The host did not wait for RDY to be 0.
                return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into());
            }
        }
        self.cc = new;
        let shutdown = new.shutdown() != ShutdownNotification::None
            && old.shutdown() == ShutdownNotification::None
            && self.csts.shutdown() == ShutdownStatus::Normal;
        if shutdown {
            self.csts = self.csts.with_shutdown(ShutdownStatus::Occurring);
            self.shutting_down = true;
        }
        if old.enabled() && !new.enabled() {
            self.resetting = true;
            return Ok(Change::Drain {
                reason: CloseReason::Reset,
                reset: true,
            });
        }
        if shutdown {
            return Ok(Change::Drain {
                reason: CloseReason::Shutdown,
                reset: false,
            });
        }
        if !old.enabled() && new.enabled() {
            // Enabling is what ends an earlier shutdown.
            self.csts = Csts::default().with_ready(true);
            return Ok(Change::Enabled);
        }
        Ok(Change::None)
    }

    /// What CC may ask for when it enables the controller. Entry sizes of 0 are not chosen yet: a host has to choose
    /// them before it connects I/O queues only.
    fn check_configuration(&self, cc: Cc) -> Option<()> {
        let listed = self.cap.command_sets() & CSS_LISTED != 0;
        let css = cc.css() == Cc::CSS_NVM || (cc.css() == Cc::CSS_ALL && listed);
        let pages = (self.cap.mpsmin()..=self.cap.mpsmax()).contains(&cc.mps());
        let entries = matches!(cc.iosqes(), 0 | 6) && matches!(cc.iocqes(), 0 | 4);
        (css && pages && entries && cc.ams() == 0 && !cc.ready_independent_of_media()).then_some(())
    }

    /// The last I/O queue is gone: what was waiting for that is complete. Says nothing if nothing was.
    pub(super) fn drained(&mut self) {
        if self.resetting {
            self.csts = self.csts.with_ready(false).with_fatal(false);
            if !self.shutting_down {
                self.csts = self.csts.with_shutdown(ShutdownStatus::Normal);
            }
        }
        if self.shutting_down {
            self.csts = self.csts.with_shutdown(ShutdownStatus::Complete);
        }
        self.resetting = false;
        self.shutting_down = false;
    }
}

fn check_size(property: Property, size: PropertySize) -> Result<(), Refusal> {
    match property.size() {
        Some(expected) if expected == size => Ok(()),
        Some(_) => Err(Refusal::at(Status::INVALID_FIELD, 40)),
        None => Err(Refusal::at(Status::INVALID_FIELD, OFFSET_OFFSET)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENABLE: Cc = Cc(0x0046_0001);

    fn properties() -> Properties {
        Properties::new(128, false)
    }

    fn write(properties: &mut Properties, cc: Cc) -> Result<Change, Refusal> {
        properties.set(PropertySet {
            size: PropertySize::Four,
            property: Property::CC,
            value: cc.0.into(),
        })
    }

    fn status(properties: &Properties) -> (bool, bool, ShutdownStatus) {
        let csts = properties.csts();
        (csts.ready(), csts.fatal(), csts.shutdown())
    }

    #[test]
    fn the_life_of_cc_and_csts() {
        use ShutdownStatus::{Complete, Normal, Occurring};
        let reset = Change::Drain {
            reason: CloseReason::Reset,
            reset: true,
        };
        let stop = Change::Drain {
            reason: CloseReason::Shutdown,
            reset: false,
        };
        let normal = ENABLE.with_shutdown(ShutdownNotification::Normal);
        let abrupt = ENABLE.with_shutdown(ShutdownNotification::Abrupt);
        let off = ENABLE.with_enabled(false);
        let mut p = properties();
        assert_eq!(status(&p), (false, false, Normal));
        // A write that prepares the configuration, then the one that enables: as Linux does.
        assert_eq!(write(&mut p, off), Ok(Change::None));
        assert!(!p.is_ready());
        assert_eq!(write(&mut p, ENABLE), Ok(Change::Enabled));
        assert_eq!((status(&p), p.is_ready()), ((true, false, Normal), true));
        assert_eq!(write(&mut p, ENABLE), Ok(Change::None));
        // Normal shutdown, notified twice, then reset and a new life.
        assert_eq!(write(&mut p, normal), Ok(stop));
        assert_eq!((status(&p), p.is_ready()), ((true, false, Occurring), false));
        assert_eq!(write(&mut p, abrupt), Ok(Change::None));
        p.drained();
        assert_eq!(status(&p), (true, false, Complete));
        assert_eq!(write(&mut p, off), Ok(reset));
        assert_eq!(status(&p), (true, false, Complete));
        p.drained();
        assert_eq!(status(&p), (false, false, Normal));
        assert_eq!(write(&mut p, ENABLE), Ok(Change::Enabled));
        // Abrupt shutdown and disable in one write.
        assert_eq!(write(&mut p, abrupt.with_enabled(false)), Ok(reset));
        p.drained();
        assert_eq!(status(&p), (false, false, Complete));
        assert_eq!(write(&mut p, ENABLE), Ok(Change::Enabled));
        assert_eq!(status(&p), (true, false, Normal));
        // A failure ends with a reset.
        p.fail();
        assert_eq!((status(&p), p.is_ready()), ((true, true, Normal), false));
        assert_eq!(write(&mut p, off), Ok(reset));
        // Enabling before RDY is 0 is out of sequence.
        assert_eq!(
            write(&mut p, ENABLE),
            Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into())
        );
        p.drained();
        assert_eq!(write(&mut p, ENABLE), Ok(Change::Enabled));
        p.drained();
        assert_eq!(status(&p), (true, false, Normal));
    }

    #[test]
    fn configurations_that_cannot_be_are_refused() {
        let refused = Err(Refusal::at(Status::INVALID_FIELD, 48));
        for cc in [
            ENABLE.with_css(Cc::CSS_ADMIN_ONLY),
            ENABLE.with_css(1),
            ENABLE.with_mps(5),
            Cc(ENABLE.0 | 1 << 11),
            Cc(ENABLE.0 | 1 << 24),
            Cc((ENABLE.0 & !(0xf << 16)) | 7 << 16),
            Cc((ENABLE.0 & !(0xf << 20)) | 5 << 20),
            ENABLE.with_shutdown(ShutdownNotification::Reserved),
        ] {
            let mut p = properties();
            assert_eq!(write(&mut p, cc), refused, "{cc:?}");
            assert_eq!((p.cc(), p.csts()), (Cc(0), Csts(0)));
        }
        for cc in [ENABLE, ENABLE.with_css(Cc::CSS_ALL), ENABLE.with_mps(4), Cc(1)] {
            assert_eq!(write(&mut properties(), cc), Ok(Change::Enabled), "{cc:?}");
        }
        let mut discovery = Properties::new(128, true);
        assert_eq!(write(&mut discovery, ENABLE.with_css(Cc::CSS_ALL)), refused);
        // What may not change while enabled.
        let mut p = properties();
        write(&mut p, ENABLE).unwrap();
        assert_eq!(write(&mut p, ENABLE.with_mps(1)), refused);
        assert_eq!(write(&mut p, ENABLE.with_css(Cc::CSS_ALL)), refused);
        assert_eq!(p.cc(), ENABLE);
    }

    #[test]
    fn sizes_and_offsets_are_checked() {
        let p = properties();
        let get = |property, size| p.get(PropertyGet { size, property });
        assert_eq!(get(Property::VS, PropertySize::Four), Ok(0x0002_0000));
        let cap = Cap(get(Property::CAP, PropertySize::Eight).unwrap());
        assert_eq!(
            (cap.max_queue_entries(), cap.timeout_ms(), cap.command_sets()),
            (128, 15000, 0x41)
        );
        assert_eq!(
            (cap.mpsmin(), cap.contiguous_queues(), cap.ready_with_media()),
            (0, true, true)
        );
        assert_eq!(get(Property::CRTO, PropertySize::Four), Ok(30));
        let size = Err(Refusal::at(Status::INVALID_FIELD, 40));
        assert_eq!(get(Property::CAP, PropertySize::Four), size);
        assert_eq!(get(Property::CSTS, PropertySize::Eight), size);
        assert_eq!(get(Property::CC, PropertySize::Unknown(3)), size);
        let offset = Err(Refusal::at(Status::INVALID_FIELD, 44));
        for property in [
            Property::NSSR,
            Property::NSSD,
            Property(0x0c),
            Property(0x1000),
            Property(u32::MAX),
        ] {
            assert_eq!(get(property, PropertySize::Four), offset, "{property:?}");
        }
        let mut p = properties();
        for property in [Property::VS, Property::CSTS, Property::NSSR, Property::CRTO] {
            let set = p.set(PropertySet {
                size: PropertySize::Four,
                property,
                value: 0x4e56_4d65,
            });
            assert_eq!(set, Err(Refusal::at(Status::INVALID_FIELD, 44)), "{property:?}");
        }
        let set = p.set(PropertySet {
            size: PropertySize::Eight,
            property: Property::CC,
            value: 1,
        });
        assert_eq!(set, Err(Refusal::at(Status::INVALID_FIELD, 40)));
    }
}
