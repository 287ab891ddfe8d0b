//! Get Features and Set Features. Base 2.0 §5.15, §5.27.
//!
//! Nothing is saveable: a controller level reset brings every default back.

use std::collections::BTreeMap;

use homi_spec::command::{NSID_BROADCAST, Sqe};
use homi_spec::feature::{FeatureId, GetFeatures, NumberOfQueues, Select, SetFeatures, capability};
use homi_spec::{Status, feature};

use crate::controller::Controller;
use crate::shared::Shared;

/// Current values of the features that one dword holds.
#[derive(Debug, Default)]
pub(crate) struct Features {
    values: BTreeMap<u8, u32>,
    host_id: [u8; 16],
    timestamp: [u8; 8],
    behavior: [u8; 3],
}

/// Features that one dword holds, which all controllers of the model have.
const PLAIN: [FeatureId; 9] = [
    FeatureId::ARBITRATION,
    FeatureId::POWER_MANAGEMENT,
    FeatureId::TEMPERATURE_THRESHOLD,
    FeatureId::ERROR_RECOVERY,
    FeatureId::VOLATILE_WRITE_CACHE,
    FeatureId::INTERRUPT_COALESCING,
    FeatureId::INTERRUPT_VECTOR,
    FeatureId::WRITE_ATOMICITY,
    FeatureId::ASYNC_EVENT,
];

impl Features {
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    fn default_of(fid: FeatureId) -> u32 {
        match fid {
            // No limit of the burst; weights of 1, zero-based.
            FeatureId::ARBITRATION => 0x7,
            FeatureId::TEMPERATURE_THRESHOLD => 343,
            FeatureId::VOLATILE_WRITE_CACHE => 1,
            _ => 0,
        }
    }

    pub(crate) fn value(&self, fid: FeatureId) -> u32 {
        self.values
            .get(&fid.0)
            .copied()
            .unwrap_or_else(|| Self::default_of(fid))
    }

    /// Commands per turn of high, medium and low priority queues.
    pub(crate) fn weights(&self) -> [u32; 3] {
        let value = self.value(FeatureId::ARBITRATION);
        [
            (value >> 24) + 1,
            ((value >> 16) & 0xff) + 1,
            ((value >> 8) & 0xff) + 1,
        ]
    }

    /// Whether these events are to be told of.
    pub(crate) fn wants(&self, event: u32) -> bool {
        self.value(FeatureId::ASYNC_EVENT) & event != 0
    }
}

impl Controller {
    pub(crate) fn get_features(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let get = GetFeatures::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        let namespaced = matches!(get.fid, FeatureId::ERROR_RECOVERY | FeatureId::WRITE_PROTECTION);
        if get.select == Select::SUPPORTED_CAPABILITIES {
            self.known(shared, get.fid)?;
            let specific = if namespaced {
                capability::NAMESPACE_SPECIFIC
            } else {
                0
            };
            return Ok(u64::from(capability::CHANGEABLE | specific));
        }
        if get.select.0 > Select::SUPPORTED_CAPABILITIES.0 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let current = get.select == Select::CURRENT;
        match get.fid {
            FeatureId::NUMBER_OF_QUEUES => {
                let (sqs, cqs) = self.granted;
                Ok(u64::from(queues(sqs, cqs)))
            }
            FeatureId::HOST_IDENTIFIER => {
                let host_id = self.features.host_id;
                let extended = get.cdw11 & feature::HOST_IDENTIFIER_EXTENDED != 0;
                let bytes = if extended {
                    host_id.as_slice()
                } else {
                    &host_id[..8]
                };
                self.give(shared, sqe, bytes)?;
                Ok(0)
            }
            FeatureId::TIMESTAMP => {
                let bytes = self.features.timestamp;
                self.give(shared, sqe, &bytes)?;
                Ok(0)
            }
            FeatureId::HOST_BEHAVIOR => {
                let mut bytes = [0; 512];
                bytes[..3].copy_from_slice(&self.features.behavior);
                self.give(shared, sqe, &bytes)?;
                Ok(0)
            }
            FeatureId::WRITE_PROTECTION => {
                let namespace = shared.attached(self.function, get.nsid)?;
                Ok(u64::from(namespace.write_protected))
            }
            fid => {
                self.known(shared, fid)?;
                if fid == FeatureId::ERROR_RECOVERY && get.nsid != NSID_BROADCAST {
                    shared.attached(self.function, get.nsid)?;
                }
                let value = if current {
                    self.features.value(fid)
                } else {
                    Features::default_of(fid)
                };
                // Interrupt Vector Configuration tells the vector back.
                let vector = if fid == FeatureId::INTERRUPT_VECTOR {
                    get.cdw11 & 0xffff
                } else {
                    0
                };
                Ok(u64::from(value | vector))
            }
        }
    }

    fn known(&self, shared: &Shared, fid: FeatureId) -> Result<(), Status> {
        let known = match fid {
            FeatureId::VOLATILE_WRITE_CACHE => shared.config.volatile_cache,
            FeatureId::NUMBER_OF_QUEUES
            | FeatureId::HOST_IDENTIFIER
            | FeatureId::TIMESTAMP
            | FeatureId::HOST_BEHAVIOR
            | FeatureId::WRITE_PROTECTION => true,
            fid => PLAIN.contains(&fid),
        };
        if known {
            Ok(())
        } else {
            Err(Status::INVALID_FIELD.with_dnr())
        }
    }

    pub(crate) fn set_features(&mut self, shared: &mut Shared, sqe: &Sqe) -> Result<u64, Status> {
        let set = SetFeatures::from_sqe(sqe).ok_or(Status::INVALID_OPCODE)?;
        self.known(shared, set.fid)?;
        if set.save {
            return Err(Status::FEATURE_NOT_SAVEABLE.with_dnr());
        }
        match set.fid {
            FeatureId::NUMBER_OF_QUEUES => {
                let asked = NumberOfQueues::from_dword(set.cdw11);
                if asked.submission_z == u16::MAX || asked.completion_z == u16::MAX {
                    return Err(Status::INVALID_FIELD.with_dnr());
                }
                if self.sqs.len() > 1 || self.cqs.len() > 1 {
                    return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
                }
                let (most, _) = self.resources(shared);
                let most = u32::from(most);
                if most == 0 {
                    return Err(Status::INVALID_FIELD.with_dnr());
                }
                self.granted = (
                    (u32::from(asked.submission_z) + 1).min(most),
                    (u32::from(asked.completion_z) + 1).min(most),
                );
                Ok(u64::from(queues(self.granted.0, self.granted.1)))
            }
            FeatureId::HOST_IDENTIFIER => {
                let extended = set.cdw11 & feature::HOST_IDENTIFIER_EXTENDED != 0;
                let mut bytes = [0; 16];
                self.take(shared, sqe, &mut bytes[..if extended { 16 } else { 8 }])?;
                self.features.host_id = bytes;
                Ok(0)
            }
            FeatureId::TIMESTAMP => {
                let mut bytes = [0; 8];
                self.take(shared, sqe, &mut bytes)?;
                // The last two are attributes and reserved.
                bytes[6..].fill(0);
                self.features.timestamp = bytes;
                Ok(0)
            }
            FeatureId::HOST_BEHAVIOR => {
                let mut bytes = [0; 512];
                self.take(shared, sqe, &mut bytes)?;
                self.features.behavior.copy_from_slice(&bytes[..3]);
                Ok(0)
            }
            FeatureId::WRITE_PROTECTION => {
                if set.cdw11 & 0x7 > 1 {
                    return Err(Status::INVALID_FIELD.with_dnr());
                }
                let namespace = shared.attached_mut(self.function, set.nsid)?;
                namespace.write_protected = set.cdw11 & 0x7 == 1;
                Ok(0)
            }
            fid => {
                if fid == FeatureId::INTERRUPT_VECTOR {
                    let (_, vectors) = self.resources(shared);
                    if set.cdw11 & 0xffff >= u32::from(vectors) {
                        return Err(Status::INVALID_FIELD.with_dnr());
                    }
                }
                // There is one power state.
                if fid == FeatureId::POWER_MANAGEMENT && set.cdw11 & 0x1f != 0 {
                    return Err(Status::INVALID_FIELD.with_dnr());
                }
                self.features.values.insert(fid.0, set.cdw11);
                Ok(0)
            }
        }
    }
}

/// Dword 0 of Number of Queues; both counts are 1 to 1024.
fn queues(sqs: u32, cqs: u32) -> u32 {
    sqs.saturating_sub(1) | (cqs.saturating_sub(1) << 16)
}
