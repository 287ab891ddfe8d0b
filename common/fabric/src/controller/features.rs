//! Features of a controller: what Set Features keeps and Get Features returns. Base 2.0 §5.15 and §5.27.
//!
//! Nothing can be saved over a power cycle, so the saved value of a feature is its default. Some values are kept
//! because hosts expect to read back what they wrote, though nothing here acts on them: arbitration, temperature
//! thresholds (there is no sensor), error recovery time and write atomicity.
//!
//! Not implemented, and refused as invalid fields: features of PCIe (interrupts, host memory), of power and
//! thermal management beyond the one power state, timestamp, LBA ranges, reservations and write protection.

use super::refusal::Refusal;
use homi_spec::Status;
use homi_spec::command::NSID_BROADCAST;
use homi_spec::feature::{
    FeatureId, GetFeatures, HOST_IDENTIFIER_EXTENDED, HostBehavior, NumberOfQueues, Select, SetFeatures,
    WRITE_CACHE_ENABLED, async_event, capability,
};
use std::collections::BTreeMap;
use zerocopy::{FromBytes, IntoBytes};

/// SMART warnings that may be asked for: b4:0 of the critical warning byte. None of them ever happens here.
const SMART_WARNINGS: u32 = 0x1f;
/// Temperature thresholds before the host sets any: never reached from below, never from above.
const OVER_DEFAULT: u16 = 0xffff;
const UNDER_DEFAULT: u16 = 0;
/// Bytes of the fields of Set Features and Get Features, for the error log.
const FID_BYTE: u8 = 40;
const VALUE_BYTE: u8 = 44;
const NSID_BYTE: u8 = 4;

/// What the values of a controller's features depend on besides themselves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances<'a> {
    /// Whether it is a discovery controller.
    pub(super) discovery: bool,
    /// Whether the subsystem has a volatile write cache.
    pub(super) write_cache: bool,
    /// I/O queues that the subsystem gives a controller.
    pub(super) max_io_queues: u16,
    /// I/O queues that are connected.
    pub(super) io_queues: usize,
    /// Keep-alive timeout in force, in milliseconds.
    pub(super) keep_alive_ms: u32,
    /// Keep-alive timeout that Connect asked for, in milliseconds.
    pub(super) keep_alive_default_ms: u32,
    /// The host's identifier.
    pub(super) host_id: &'a [u8; 16],
    /// Whether a namespace is active.
    pub(super) namespace: bool,
}

/// What a Set Features asks of the association besides keeping a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetEffect {
    /// Nothing. Dword 0 of the completion.
    None(u32),
    /// The keep-alive timeout changes.
    KeepAlive(u32),
    /// Writes have to be durable at completion, or no longer.
    WriteThrough(bool),
}

/// What a Get Features returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    /// Dword 0 of the completion.
    pub(super) dword: u32,
    /// The data, for features that have some.
    pub(super) data: Vec<u8>,
}

impl From<u32> for Value {
    fn from(dword: u32) -> Self {
        Self {
            dword,
            data: Vec::new(),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Features {
    arbitration: u32,
    power: u32,
    over_temperature: u16,
    under_temperature: u16,
    error_recovery: u16,
    error_recovery_by_namespace: BTreeMap<u32, u16>,
    write_cache: bool,
    io_queues: Option<u16>,
    write_atomicity: u32,
    async_event: u32,
    behavior: HostBehavior,
}

/// What a feature can do: `None` if the controller does not have it.
fn capabilities(fid: FeatureId, write_cache: bool, discovery: bool) -> Option<u32> {
    let common = matches!(fid, FeatureId::ASYNC_EVENT | FeatureId::KEEP_ALIVE_TIMER);
    if discovery && !common {
        return None;
    }
    Some(match fid {
        FeatureId::ARBITRATION
        | FeatureId::POWER_MANAGEMENT
        | FeatureId::TEMPERATURE_THRESHOLD
        | FeatureId::NUMBER_OF_QUEUES
        | FeatureId::WRITE_ATOMICITY
        | FeatureId::ASYNC_EVENT
        | FeatureId::KEEP_ALIVE_TIMER
        | FeatureId::HOST_BEHAVIOR
        | FeatureId::IO_COMMAND_SET_PROFILE => capability::CHANGEABLE,
        FeatureId::ERROR_RECOVERY => capability::CHANGEABLE | capability::NAMESPACE_SPECIFIC,
        FeatureId::VOLATILE_WRITE_CACHE if write_cache => capability::CHANGEABLE,
        FeatureId::HOST_IDENTIFIER => 0,
        _ => return None,
    })
}

impl Features {
    /// The defaults of a controller whose host gave this keep-alive timeout.
    pub(super) fn new(discovery: bool, keep_alive_ms: u32) -> Self {
        Self {
            arbitration: 0,
            power: 0,
            over_temperature: OVER_DEFAULT,
            under_temperature: UNDER_DEFAULT,
            error_recovery: 0,
            error_recovery_by_namespace: BTreeMap::new(),
            write_cache: true,
            io_queues: None,
            write_atomicity: 0,
            async_event: default_async_event(discovery, keep_alive_ms),
            behavior: HostBehavior::default(),
        }
    }

    /// The features that a controller has: for the effects log.
    pub(super) fn supported(write_cache: bool, discovery: bool) -> impl Iterator<Item = (FeatureId, u32)> {
        (0..=u8::MAX).filter_map(move |raw| {
            let fid = FeatureId(raw);
            capabilities(fid, write_cache, discovery).map(|capabilities| (fid, capabilities))
        })
    }

    /// The events to report, as feature 0Bh has them.
    pub(super) fn async_event(&self) -> u32 {
        self.async_event
    }

    /// I/O queues that the controller has, of those that the subsystem gives.
    pub(super) fn io_queues(&self, max: u16) -> u16 {
        self.io_queues.unwrap_or(max).min(max)
    }

    /// Bytes of data that come with a Set Features.
    pub(super) fn set_data_length(fid: FeatureId) -> u32 {
        match fid {
            FeatureId::HOST_BEHAVIOR => 512,
            _ => 0,
        }
    }

    /// Set Features.
    pub(super) fn set(
        &mut self,
        command: SetFeatures,
        data: &[u8],
        now: &Circumstances<'_>,
    ) -> Result<SetEffect, Refusal> {
        let fid = command.fid;
        let capabilities = capabilities(fid, now.write_cache, now.discovery)
            .ok_or(Refusal::at(Status::INVALID_FIELD, FID_BYTE))?;
        if command.save {
            return Err(Refusal::at(Status::FEATURE_NOT_SAVEABLE, FID_BYTE + 3));
        }
        if fid == FeatureId::HOST_IDENTIFIER {
            // Base 2.0 §5.27.1.25: over fabrics Connect sets it, and nothing else may.
            return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into());
        }
        self.check_namespace(command.nsid, capabilities, now)?;
        let value = command.cdw11;
        let invalid = Refusal::at(Status::INVALID_FIELD, VALUE_BYTE);
        match fid {
            FeatureId::ARBITRATION => self.arbitration = value,
            // One power state, 0; the workload hint is free.
            FeatureId::POWER_MANAGEMENT if value & 0x1f == 0 => self.power = value & 0xe0,
            FeatureId::TEMPERATURE_THRESHOLD => self.set_temperature(value).ok_or(invalid)?,
            FeatureId::ERROR_RECOVERY => self.set_error_recovery(command.nsid, value).ok_or(invalid)?,
            FeatureId::VOLATILE_WRITE_CACHE => {
                self.write_cache = value & WRITE_CACHE_ENABLED != 0;
                return Ok(SetEffect::WriteThrough(!self.write_cache));
            }
            FeatureId::NUMBER_OF_QUEUES => {
                return self
                    .set_queues(NumberOfQueues::from_dword(value), now)
                    .map(SetEffect::None);
            }
            FeatureId::WRITE_ATOMICITY => self.write_atomicity = value & 1,
            FeatureId::ASYNC_EVENT => self.async_event = value & supported_events(now.discovery),
            FeatureId::KEEP_ALIVE_TIMER => return Ok(SetEffect::KeepAlive(value)),
            FeatureId::HOST_BEHAVIOR => {
                let behavior = HostBehavior::read_from_bytes(data)
                    .map_err(|_| Refusal::at(Status::SGL_DATA_LENGTH_INVALID, 24))?;
                if behavior.acre > 1 || behavior.etdas > 1 || behavior.lbafee > 1 {
                    return Err(Status::INVALID_FIELD.with_dnr().into());
                }
                self.behavior = HostBehavior {
                    acre: behavior.acre,
                    etdas: behavior.etdas,
                    lbafee: behavior.lbafee,
                    ..HostBehavior::default()
                };
            }
            // The one combination of command sets that there is.
            FeatureId::IO_COMMAND_SET_PROFILE if value & 0x1ff == 0 => {}
            FeatureId::IO_COMMAND_SET_PROFILE => {
                return Err(Refusal::at(
                    Status::IO_COMMAND_SET_COMBINATION_REJECTED,
                    VALUE_BYTE,
                ));
            }
            _ => return Err(invalid),
        }
        Ok(SetEffect::None(0))
    }

    /// Get Features.
    pub(super) fn get(&self, command: GetFeatures, now: &Circumstances<'_>) -> Result<Value, Refusal> {
        let fid = command.fid;
        let capabilities = capabilities(fid, now.write_cache, now.discovery)
            .ok_or(Refusal::at(Status::INVALID_FIELD, FID_BYTE))?;
        match command.select {
            Select::SUPPORTED_CAPABILITIES => return Ok(capabilities.into()),
            Select::CURRENT => {}
            Select::DEFAULT | Select::SAVED => {
                let defaults = Self::new(now.discovery, now.keep_alive_default_ms);
                let circumstances = Circumstances {
                    keep_alive_ms: now.keep_alive_default_ms,
                    ..*now
                };
                return defaults.current(command, &circumstances);
            }
            _ => return Err(Refusal::at(Status::INVALID_FIELD, FID_BYTE + 1)),
        }
        if capabilities & capability::NAMESPACE_SPECIFIC != 0 {
            self.check_namespace(command.nsid, capabilities, now)?;
        }
        self.current(command, now)
    }

    fn current(&self, command: GetFeatures, now: &Circumstances<'_>) -> Result<Value, Refusal> {
        let invalid = Refusal::at(Status::INVALID_FIELD, VALUE_BYTE);
        Ok(match command.fid {
            FeatureId::ARBITRATION => self.arbitration.into(),
            FeatureId::POWER_MANAGEMENT => self.power.into(),
            FeatureId::TEMPERATURE_THRESHOLD => match temperature_select(command.cdw11) {
                (0, 0) => u32::from(self.over_temperature).into(),
                (0, 1) => u32::from(self.under_temperature).into(),
                _ => return Err(invalid),
            },
            FeatureId::ERROR_RECOVERY => {
                let own = self.error_recovery_by_namespace.get(&command.nsid);
                u32::from(*own.unwrap_or(&self.error_recovery)).into()
            }
            FeatureId::VOLATILE_WRITE_CACHE => u32::from(self.write_cache).into(),
            FeatureId::NUMBER_OF_QUEUES => {
                let granted = self.io_queues(now.max_io_queues);
                NumberOfQueues::pairs(granted.into())
                    .map_or(0, NumberOfQueues::to_dword)
                    .into()
            }
            FeatureId::WRITE_ATOMICITY => self.write_atomicity.into(),
            FeatureId::ASYNC_EVENT => self.async_event.into(),
            FeatureId::KEEP_ALIVE_TIMER => now.keep_alive_ms.into(),
            FeatureId::HOST_BEHAVIOR => Value {
                dword: 0,
                data: self.behavior.as_bytes().to_vec(),
            },
            FeatureId::IO_COMMAND_SET_PROFILE => 0.into(),
            FeatureId::HOST_IDENTIFIER => {
                if command.cdw11 & HOST_IDENTIFIER_EXTENDED == 0 {
                    // Base 2.0 §5.27.1.25: fabrics know 16-byte identifiers only.
                    return Err(invalid);
                }
                Value {
                    dword: 0,
                    data: now.host_id.to_vec(),
                }
            }
            _ => return Err(Refusal::at(Status::INVALID_FIELD, FID_BYTE)),
        })
    }

    /// Base 2.0 §5.27: a feature of the controller cannot be set for one namespace; one of namespaces takes an active
    /// one, or all of them.
    fn check_namespace(&self, nsid: u32, capabilities: u32, now: &Circumstances<'_>) -> Result<(), Refusal> {
        if nsid == 0 || nsid == NSID_BROADCAST {
            return Ok(());
        }
        if capabilities & capability::NAMESPACE_SPECIFIC == 0 {
            return Err(Refusal::at(Status::FEATURE_NOT_NAMESPACE_SPECIFIC, NSID_BYTE));
        }
        if !now.namespace {
            return Err(Refusal::at(Status::INVALID_NAMESPACE, NSID_BYTE));
        }
        Ok(())
    }

    fn set_temperature(&mut self, value: u32) -> Option<()> {
        let [a, b, ..] = value.to_le_bytes();
        let threshold = u16::from_le_bytes([a, b]);
        match temperature_select(value) {
            // The composite temperature, or all sensors, of which there is none else.
            (0 | 0xf, 0) => self.over_temperature = threshold,
            (0 | 0xf, 1) => self.under_temperature = threshold,
            _ => return None,
        }
        Some(())
    }

    fn set_error_recovery(&mut self, nsid: u32, value: u32) -> Option<()> {
        // DULBE cannot be switched on (NSFEAT bit 2 is 0).
        let time = u16::try_from(value).ok()?;
        if nsid == 0 || nsid == NSID_BROADCAST {
            self.error_recovery_by_namespace.clear();
            self.error_recovery = time;
        } else {
            self.error_recovery_by_namespace.insert(nsid, time);
        }
        Some(())
    }

    fn set_queues(&mut self, asked: NumberOfQueues, now: &Circumstances<'_>) -> Result<u32, Refusal> {
        if asked.submission_z == u16::MAX || asked.completion_z == u16::MAX {
            return Err(Refusal::at(Status::INVALID_FIELD, VALUE_BYTE));
        }
        if now.io_queues != 0 {
            // Base 2.0 §5.27.1.5: only before the first I/O queue.
            return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into());
        }
        let granted = asked.queue_pairs().min(now.max_io_queues.into());
        self.io_queues = u16::try_from(granted).ok();
        Ok(NumberOfQueues::pairs(granted).map_or(0, NumberOfQueues::to_dword))
    }
}

fn temperature_select(value: u32) -> (u32, u32) {
    ((value >> 16) & 0xf, (value >> 20) & 0x3)
}

fn supported_events(discovery: bool) -> u32 {
    if discovery {
        async_event::DISCOVERY_LOG
    } else {
        SMART_WARNINGS | async_event::NAMESPACE_ATTRIBUTE
    }
}

/// A host that keeps a discovery controller alive wants to hear of changes; a host of namespaces always does.
fn default_async_event(discovery: bool, keep_alive_ms: u32) -> u32 {
    match (discovery, keep_alive_ms) {
        (true, 0) => 0,
        (true, _) => async_event::DISCOVERY_LOG,
        (false, _) => async_event::NAMESPACE_ATTRIBUTE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: [u8; 16] = [7; 16];

    fn now() -> Circumstances<'static> {
        Circumstances {
            discovery: false,
            write_cache: true,
            max_io_queues: 8,
            io_queues: 0,
            keep_alive_ms: 5000,
            keep_alive_default_ms: 10000,
            host_id: &HOST,
            namespace: true,
        }
    }

    fn get(features: &Features, fid: FeatureId) -> Result<u32, Status> {
        let command = GetFeatures {
            cdw11: 0,
            ..GetFeatures::new(fid)
        };
        features
            .get(command, &now())
            .map(|value| value.dword)
            .map_err(|refusal| refusal.status)
    }

    fn set(features: &mut Features, fid: FeatureId, value: u32) -> Result<SetEffect, Status> {
        features
            .set(SetFeatures::new(fid, value), &[], &now())
            .map_err(|refusal| refusal.status)
    }

    #[test]
    fn values_are_read_back_and_defaults_stay() {
        let mut features = Features::new(false, 10000);
        for (fid, value, expected) in [
            (FeatureId::ARBITRATION, 0x0102_0307, 0x0102_0307),
            (FeatureId::POWER_MANAGEMENT, 0x40, 0x40),
            (FeatureId::TEMPERATURE_THRESHOLD, 0x0154, 0x0154),
            (FeatureId::ERROR_RECOVERY, 0x1234, 0x1234),
            (FeatureId::WRITE_ATOMICITY, 1, 1),
            (FeatureId::ASYNC_EVENT, u32::MAX, 0x11f),
            (FeatureId::IO_COMMAND_SET_PROFILE, 0, 0),
        ] {
            let default = get(&features, fid).unwrap();
            assert_eq!(set(&mut features, fid, value), Ok(SetEffect::None(0)), "{fid:?}");
            assert_eq!(get(&features, fid), Ok(expected), "{fid:?}");
            for select in [Select::DEFAULT, Select::SAVED] {
                let command = GetFeatures {
                    select,
                    ..GetFeatures::new(fid)
                };
                assert_eq!(features.get(command, &now()).unwrap().dword, default, "{fid:?}");
            }
        }
        assert_eq!(
            set(&mut features, FeatureId::VOLATILE_WRITE_CACHE, 0),
            Ok(SetEffect::WriteThrough(true))
        );
        assert_eq!(get(&features, FeatureId::VOLATILE_WRITE_CACHE), Ok(0));
        assert_eq!(
            set(&mut features, FeatureId::KEEP_ALIVE_TIMER, 7),
            Ok(SetEffect::KeepAlive(7))
        );
        assert_eq!(get(&features, FeatureId::KEEP_ALIVE_TIMER), Ok(5000));
    }

    #[test]
    fn queues_are_granted_up_to_the_limit_and_only_before_the_first() {
        let mut features = Features::new(false, 0);
        assert_eq!(get(&features, FeatureId::NUMBER_OF_QUEUES), Ok(0x0007_0007));
        let few = NumberOfQueues::pairs(4).unwrap().to_dword();
        assert_eq!(
            set(&mut features, FeatureId::NUMBER_OF_QUEUES, few),
            Ok(SetEffect::None(few))
        );
        assert_eq!(features.io_queues(8), 4);
        let many = NumberOfQueues::pairs(100).unwrap().to_dword();
        assert_eq!(
            set(&mut features, FeatureId::NUMBER_OF_QUEUES, many),
            Ok(SetEffect::None(0x0007_0007))
        );
        let invalid = Err(Status::INVALID_FIELD.with_dnr());
        assert_eq!(set(&mut features, FeatureId::NUMBER_OF_QUEUES, 0xffff), invalid);
        assert_eq!(
            set(&mut features, FeatureId::NUMBER_OF_QUEUES, 0xffff_0000),
            invalid
        );
        let command = SetFeatures::new(FeatureId::NUMBER_OF_QUEUES, few);
        let late = features.set(
            command,
            &[],
            &Circumstances {
                io_queues: 1,
                ..now()
            },
        );
        assert_eq!(late, Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into()));
    }

    #[test]
    fn what_cannot_be_set_says_why() {
        let mut features = Features::new(false, 0);
        let invalid = Err(Status::INVALID_FIELD.with_dnr());
        for fid in [
            FeatureId::INTERRUPT_COALESCING,
            FeatureId::INTERRUPT_VECTOR,
            FeatureId::LBA_RANGE_TYPE,
            FeatureId::HOST_MEMORY_BUFFER,
            FeatureId::RESERVATION_MASK,
            FeatureId(0),
            FeatureId(0xff),
        ] {
            assert_eq!(set(&mut features, fid, 0), invalid, "{fid:?}");
            assert_eq!(
                get(&features, fid),
                Err(Status::INVALID_FIELD.with_dnr()),
                "{fid:?}"
            );
        }
        assert_eq!(set(&mut features, FeatureId::POWER_MANAGEMENT, 1), invalid);
        assert_eq!(
            set(&mut features, FeatureId::TEMPERATURE_THRESHOLD, 1 << 16),
            invalid
        );
        assert_eq!(set(&mut features, FeatureId::ERROR_RECOVERY, 1 << 16), invalid);
        let combination = Err(Status::IO_COMMAND_SET_COMBINATION_REJECTED.with_dnr());
        assert_eq!(
            set(&mut features, FeatureId::IO_COMMAND_SET_PROFILE, 1),
            combination
        );
        let sequence = Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        assert_eq!(set(&mut features, FeatureId::HOST_IDENTIFIER, 1), sequence);
        let save = SetFeatures {
            save: true,
            ..SetFeatures::new(FeatureId::ARBITRATION, 0)
        };
        let status = features.set(save, &[], &now()).map_err(|refusal| refusal.status);
        assert_eq!(status, Err(Status::FEATURE_NOT_SAVEABLE.with_dnr()));
        let one = SetFeatures {
            nsid: 1,
            ..SetFeatures::new(FeatureId::ARBITRATION, 0)
        };
        let status = features.set(one, &[], &now()).map_err(|refusal| refusal.status);
        assert_eq!(status, Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr()));
        let no_cache = Circumstances {
            write_cache: false,
            ..now()
        };
        let cache = SetFeatures::new(FeatureId::VOLATILE_WRITE_CACHE, 1);
        assert!(features.set(cache, &[], &no_cache).is_err());
    }

    #[test]
    fn namespace_specific_values_and_data() {
        let mut features = Features::new(false, 0);
        let recovery = |nsid, value| SetFeatures {
            nsid,
            ..SetFeatures::new(FeatureId::ERROR_RECOVERY, value)
        };
        let read = |features: &Features, nsid| {
            let command = GetFeatures {
                nsid,
                ..GetFeatures::new(FeatureId::ERROR_RECOVERY)
            };
            features.get(command, &now()).unwrap().dword
        };
        features.set(recovery(2, 5), &[], &now()).unwrap();
        assert_eq!((read(&features, 1), read(&features, 2)), (0, 5));
        features.set(recovery(NSID_BROADCAST, 6), &[], &now()).unwrap();
        assert_eq!((read(&features, 1), read(&features, 2)), (6, 6));
        let gone = features.set(
            recovery(9, 5),
            &[],
            &Circumstances {
                namespace: false,
                ..now()
            },
        );
        assert_eq!(
            gone.map_err(|refusal| refusal.status),
            Err(Status::INVALID_NAMESPACE.with_dnr())
        );

        let mut behavior = vec![0; 512];
        behavior[0] = 1;
        let command = SetFeatures::new(FeatureId::HOST_BEHAVIOR, 0);
        assert!(features.set(command, &behavior[..511], &now()).is_err());
        features.set(command, &behavior, &now()).unwrap();
        let value = features
            .get(GetFeatures::new(FeatureId::HOST_BEHAVIOR), &now())
            .unwrap();
        assert_eq!(value.data, behavior);
        behavior[2] = 2;
        assert!(features.set(command, &behavior, &now()).is_err());

        let id = GetFeatures {
            cdw11: 1,
            ..GetFeatures::new(FeatureId::HOST_IDENTIFIER)
        };
        assert_eq!(features.get(id, &now()).unwrap().data, HOST);
        assert_eq!(
            get(&features, FeatureId::HOST_IDENTIFIER),
            Err(Status::INVALID_FIELD.with_dnr())
        );
        let capabilities = GetFeatures {
            select: Select::SUPPORTED_CAPABILITIES,
            ..GetFeatures::new(FeatureId::ERROR_RECOVERY)
        };
        assert_eq!(features.get(capabilities, &now()).unwrap().dword, 0b110);
        let reserved = GetFeatures {
            select: Select(5),
            ..GetFeatures::new(FeatureId::ARBITRATION)
        };
        assert!(features.get(reserved, &now()).is_err());
    }

    #[test]
    fn discovery_controllers_have_two_features() {
        let fids: Vec<FeatureId> = Features::supported(true, true).map(|(fid, _)| fid).collect();
        assert_eq!(fids, [FeatureId::ASYNC_EVENT, FeatureId::KEEP_ALIVE_TIMER]);
        assert_eq!(Features::new(true, 0).async_event(), 0);
        assert_eq!(Features::new(true, 1).async_event(), async_event::DISCOVERY_LOG);
    }
}
