//! Bringing a controller up: from whatever it was to identified, with queues granted. Base 2.0 §3.5.1.

use std::sync::Arc;
use std::time::Duration;

use homi_pci::Unsupported;
use homi_queue::SglRules;
use homi_spec::admin::async_event_request;
use homi_spec::controller::{Cc, Csts};
use homi_spec::feature::{FeatureId, NumberOfQueues, SetFeatures, async_event};
use homi_spec::identify::{
    Cns, DATA_SIZE, Identify, IdentifyController, IdentifyNamespace, NamespaceList, oacs, oaes,
};
use homi_spec::manage::doorbell_buffer_config;
use zerocopy::FromBytes;

use crate::admin::Purpose;
use crate::error::NvmeError;
use crate::info::{ControllerInfo, Namespace};
use crate::life::{Inner, Life, Quiet, State};
use crate::shadow::Shadow;
use crate::transact::{AdminData, Pauses, Via};

/// The longest time that a controller is waited for, whatever it asks for.
const LONGEST: Duration = Duration::from_secs(300);
/// The shortest: some controllers say 0.
const SHORTEST: Duration = Duration::from_secs(2);
/// The most namespaces that are looked at.
const MOST_NAMESPACES: usize = 8192;
/// Event requests that are kept with the controller.
pub(crate) const EVENT_REQUESTS: u16 = 4;

impl Inner {
    /// How long the controller may take to become ready, or not ready.
    pub(crate) fn ready_timeout(&self) -> Duration {
        let mut units = u32::from(self.cap.timeout_500ms());
        if self.cap.ready_with_media() || self.cap.ready_independent_of_media() {
            units = units.max(self.bar.crto().with_media_500ms().into());
        }
        (Duration::from_millis(500) * units).clamp(SHORTEST, LONGEST)
    }

    /// Waits for the status to be as wanted.
    pub(crate) fn wait_for(
        &self,
        what: &'static str,
        after: Duration,
        mut wanted: impl FnMut(Csts) -> Result<bool, NvmeError>,
    ) -> Result<(), NvmeError> {
        let start = self.clock.now();
        let mut pauses = Pauses::new();
        loop {
            if wanted(self.bar.csts()?)? {
                return Ok(());
            }
            if self.clock.now().saturating_sub(start) >= after {
                return Err(NvmeError::Timeout { what, after });
            }
            self.pause(pauses.next(), None);
        }
    }

    /// Brings the controller up from any state. After an error, the caller stops it.
    pub(crate) fn bring_up(&self, life: &mut Life) -> Result<(), NvmeError> {
        life.state = State::Starting;
        life.quiet = self.quiesce();
        match life.quiet {
            Quiet::Disabled => {}
            // Vectors are off after a reset of the function.
            Quiet::Reset => life.vectors.clear(),
            Quiet::Gone => return Err(NvmeError::Removed),
            Quiet::Cut | Quiet::No => {
                return Err(NvmeError::Timeout {
                    what: "stop (CSTS.RDY = 0), and the function could not be reset",
                    after: self.ready_timeout(),
                });
            }
        }
        life.admin.drain(true);
        life.admin.restart()?;
        if life.vectors.is_empty() {
            let count = self.options.vectors.min(self.function.vectors());
            let vectors = if count > 0 {
                self.function.enable_vectors(count)?
            } else {
                Vec::new()
            };
            life.vectors = vectors.into_iter().map(Arc::new).collect();
        }
        // From here on it may reach memory.
        life.quiet = Quiet::No;
        self.function.set_bus_master(true)?;
        self.restore_cmb(life)?;
        self.enable(life)?;
        life.shadow = None;
        let info = self.set_up(life)?;
        let queues = info.queues;
        life.info = Some(Arc::new(info));
        let namespaces = if queues > 0 {
            self.scan(&mut Via::Locked(life))?
        } else {
            Vec::new()
        };
        self.set_namespaces(namespaces);
        life.looked = self.clock.now();
        life.state = State::Ready;
        self.request_events(life);
        Ok(())
    }

    fn enable(&self, life: &mut Life) -> Result<(), NvmeError> {
        let (attributes, submission, completion) = life.admin.attributes();
        self.bar.set_admin_queues(attributes, submission, completion);
        let sets = self.cap.command_sets();
        let css = if sets & 0x01 != 0 {
            Cc::CSS_NVM
        } else if sets & 0x40 != 0 {
            Cc::CSS_ALL
        } else if sets & 0x80 != 0 {
            Cc::CSS_ADMIN_ONLY
        } else {
            return Err(NvmeError::Incompatible {
                what: "the command sets (CAP.CSS)",
                found: format!("{sets:#04x}"),
                needed: "the nvm command set, or none",
            });
        };
        let mut cc = Cc::default()
            .with_css(css)
            .with_mps(self.cap.mpsmin())
            .with_standard_entry_sizes();
        if self.options.arbitration.is_some() {
            if self.cap.arbitration() & 1 == 0 {
                return Err(Unsupported {
                    what: "weighted round robin arbitration",
                    missing: "the controller does not offer it (CAP.AMS)".to_owned(),
                }
                .into());
            }
            // AMS, bits 13:11: weighted round robin with urgent priority class.
            cc = Cc(cc.0 | (1 << 11));
        }
        self.bar.set_cc(cc);
        self.bar.set_cc(cc.with_enabled(true));
        self.wait_for("become ready (CSTS.RDY = 1)", self.ready_timeout(), |csts| {
            if csts.fatal() {
                return Err(NvmeError::Fatal);
            }
            Ok(csts.ready())
        })
    }

    /// Identifies the controller and agrees with it on queues, events and doorbells.
    fn set_up(&self, life: &mut Life) -> Result<ControllerInfo, NvmeError> {
        let via = &mut Via::Locked(life);
        let identify: IdentifyController = self.identify_page(via, Identify::controller())?;
        check_entry_size("the sizes of submission queue entries (SQES)", identify.sqes, 6)?;
        check_entry_size("the sizes of completion queue entries (CQES)", identify.cqes, 4)?;
        let page = self.page.bytes();
        let mdts = identify.max_transfer(self.cap.mpsmin());
        let wanted = u64::from(self.options.max_transfer).max(2 * page);
        let max_transfer = mdts.map_or(wanted, |mdts| mdts.min(wanted)) / page * page;
        let queues = self.negotiate_queues(via)?;
        if let Some(weights) = self.options.arbitration {
            let set = SetFeatures::new(FeatureId::ARBITRATION, weights.dword());
            self.command(via, set.to_sqe(0), AdminData::None)?;
        }
        self.configure_events(via, &identify)?;
        let shadow = self.configure_shadow(via, &identify)?;
        let Via::Locked(life) = via else {
            return Err(NvmeError::Protocol(
                "a controller is set up under its lock".to_owned(),
            ));
        };
        let has_shadow = shadow.is_some();
        life.shadow = shadow;
        Ok(ControllerInfo {
            cap: self.cap,
            version: self.bar.version(),
            page: self.page,
            max_transfer,
            mdts,
            queues,
            vectors: u16::try_from(life.vectors.len()).unwrap_or(u16::MAX),
            sgl: SglRules::of(&identify, max_transfer).ok(),
            weighted: self.options.arbitration.is_some(),
            shadow: has_shadow,
            identify: Box::new(identify),
        })
    }

    fn negotiate_queues(&self, via: &mut Via<'_>) -> Result<u16, NvmeError> {
        if self.bar.cc().css() == Cc::CSS_ADMIN_ONLY {
            return Ok(0);
        }
        let wanted = self.options.queues.min(self.bar.last_queue(self.stride));
        let Some(ask) = NumberOfQueues::pairs(wanted.into()) else {
            return Ok(0);
        };
        let set = SetFeatures::new(FeatureId::NUMBER_OF_QUEUES, ask.to_dword());
        let granted = self.transact(via, set.to_sqe(0), AdminData::None)?;
        if !granted.is_success() {
            // A virtual function without resources says so like this.
            tracing::warn!(status = %granted.status, "the controller grants no i/o queues");
            return Ok(0);
        }
        let granted = NumberOfQueues::from_dword(granted.dw0()).queue_pairs();
        Ok(u16::try_from(granted).unwrap_or(u16::MAX).min(wanted))
    }

    fn configure_events(&self, via: &mut Via<'_>, identify: &IdentifyController) -> Result<(), NvmeError> {
        let offered = identify.oaes.get() & (oaes::NAMESPACE_ATTRIBUTE | oaes::FIRMWARE_ACTIVATION);
        let set = SetFeatures::new(FeatureId::ASYNC_EVENT, offered | async_event::SMART_MASK);
        let done = self.transact(via, set.to_sqe(0), AdminData::None)?;
        if !done.is_success() {
            tracing::debug!(status = %done.status, "asynchronous events cannot be configured");
        }
        Ok(())
    }

    fn configure_shadow(
        &self,
        via: &mut Via<'_>,
        identify: &IdentifyController,
    ) -> Result<Option<Shadow>, NvmeError> {
        if !self.options.shadow_doorbells || identify.oacs.get() & oacs::DOORBELL_BUFFER == 0 {
            return Ok(None);
        }
        // New pages each time: queues of an earlier life may still have the old ones.
        let shadow = Shadow::new(&self.space, self.page, self.stride)?;
        let (values, events) = shadow.addresses();
        let done = self.transact(via, doorbell_buffer_config(values, events, 0), AdminData::None)?;
        if done.is_success() {
            return Ok(Some(shadow));
        }
        tracing::warn!(status = %done.status, "the controller offers doorbells in memory and refuses them");
        Ok(None)
    }

    /// One structure of Identify.
    pub(crate) fn identify_page<T: FromBytes>(
        &self,
        via: &mut Via<'_>,
        identify: Identify,
    ) -> Result<T, NvmeError> {
        let mut bytes = vec![0; DATA_SIZE];
        self.command(via, identify.to_sqe(0), AdminData::FromController(&mut bytes))?;
        let (page, _) = T::read_from_prefix(&bytes).map_err(|_| NvmeError::Incompatible {
            what: "the length of a structure of identify",
            found: size_of::<T>().to_string(),
            needed: "at most 4096 bytes",
        })?;
        Ok(page)
    }

    /// The namespaces that are attached, in ascending order. Those that make no sense are left out.
    pub(crate) fn scan(&self, via: &mut Via<'_>) -> Result<Vec<Namespace>, NvmeError> {
        let mut namespaces = Vec::new();
        for nsid in self.active_namespaces(via)? {
            let request = Identify::namespace(Cns::NAMESPACE, nsid);
            let page: IdentifyNamespace = match self.identify_page(via, request) {
                Ok(page) => page,
                // It went while it was looked at, or belongs to another command set.
                Err(NvmeError::Status { status, .. }) => {
                    tracing::warn!(nsid, %status, "a namespace cannot be identified");
                    continue;
                }
                Err(error) => return Err(error),
            };
            if !page.is_active() {
                continue;
            }
            match Namespace::new(nsid, Box::new(page)) {
                Ok(namespace) => namespaces.push(namespace),
                Err(why) => tracing::warn!(nsid, why, "a namespace cannot be used"),
            }
        }
        Ok(namespaces)
    }

    fn active_namespaces(&self, via: &mut Via<'_>) -> Result<Vec<u32>, NvmeError> {
        let mut found = Vec::new();
        let mut last = 0;
        while found.len() < MOST_NAMESPACES {
            let request = Identify::namespace(Cns::ACTIVE_NAMESPACES, last);
            let list: NamespaceList = match self.identify_page(via, request) {
                Ok(list) => list,
                // Controllers of NVMe 1.0 have no such list.
                Err(NvmeError::Status { status, .. }) if found.is_empty() => {
                    tracing::debug!(%status, "the controller has no list of namespaces");
                    return self.count_namespaces(via);
                }
                Err(error) => return Err(error),
            };
            let before = found.len();
            for nsid in list.iter() {
                if nsid <= last {
                    return Err(NvmeError::Protocol(format!(
                        "the list of namespaces has {nsid} after {last}"
                    )));
                }
                last = nsid;
                found.push(nsid);
            }
            if found.len() - before < list.nsids.len() {
                return Ok(found);
            }
        }
        tracing::warn!(
            MOST_NAMESPACES,
            "the controller has more namespaces than are looked at"
        );
        Ok(found)
    }

    fn count_namespaces(&self, via: &mut Via<'_>) -> Result<Vec<u32>, NvmeError> {
        let identify: IdentifyController = self.identify_page(via, Identify::controller())?;
        let most = u32::try_from(MOST_NAMESPACES).unwrap_or(u32::MAX);
        Ok((1..=identify.nn.get().min(most)).collect())
    }

    /// Keeps event requests with the controller.
    pub(crate) fn request_events(&self, life: &mut Life) {
        let limit = life
            .info
            .as_ref()
            .map_or(0, |info| u16::from(info.identify.aerl_z) + 1);
        let now = self.clock.now();
        while life.admin.event_requests < limit.min(EVENT_REQUESTS)
            && !life.admin.no_events
            && life.admin.room() > 8
        {
            let request = async_event_request(0);
            if life
                .admin
                .submit(&self.bar, now, Purpose::Event, request, None)
                .is_err()
            {
                return;
            }
        }
    }
}

fn check_entry_size(what: &'static str, field: u8, needed: u8) -> Result<(), NvmeError> {
    let (least, most) = (field & 0xf, field >> 4);
    if least <= needed && needed <= most {
        return Ok(());
    }
    Err(NvmeError::Incompatible {
        what,
        found: format!("2^{least} to 2^{most} bytes"),
        needed: "64 bytes for submissions, 16 for completions",
    })
}
