//! Protocol data units built and taken apart by hand, so that a test can say what no correct peer ever says.
//!
//! Nothing here is shared with the transport under test but the wire types: a mistake in its framing cannot hide in
//! this one.

use homi_spec::tcp::{
    C2HData, CapsuleCmd, CapsuleResp, FatalError, H2CData, IcReq, IcResp, PduHeader, PduType, R2t, TermReq,
    dgst, flags,
};
use homi_spec::{Cqe, Sqe, Status};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of the common header.
pub const COMMON: usize = size_of::<PduHeader>();

/// Writes units with the digests of one connection and no alignment beyond four bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Units {
    /// A CRC32C follows each header.
    pub header_digest: bool,
    /// A CRC32C follows the data of each unit that has some.
    pub data_digest: bool,
}

impl Units {
    /// Without digests.
    pub const PLAIN: Self = Self {
        header_digest: false,
        data_digest: false,
    };
    /// With both digests.
    pub const DIGESTS: Self = Self {
        header_digest: true,
        data_digest: true,
    };

    /// The digests as ICReq and ICResp have them.
    #[must_use]
    pub fn dgst(self) -> u8 {
        u8::from(self.header_digest) * dgst::HEADER + u8::from(self.data_digest) * dgst::DATA
    }

    /// A unit of this type: the header's first eight bytes are filled in here.
    fn unit<T: IntoBytes + Immutable>(self, pdu: PduType, mut flags: u8, header: &T, data: &[u8]) -> Vec<u8> {
        let mut unit = header.as_bytes().to_vec();
        let hlen = unit.len();
        let mut len = hlen;
        if self.header_digest {
            flags |= flags::HDGST;
            len += 4;
        }
        let pdo = if data.is_empty() { 0 } else { len };
        len += data.len();
        if self.data_digest && !data.is_empty() {
            flags |= flags::DDGST;
            len += 4;
        }
        let narrow = |value: usize| u8::try_from(value).unwrap();
        let mut common = PduHeader::new(pdu, flags, narrow(pdo), u32::try_from(len).unwrap());
        common.hlen = narrow(hlen);
        unit[..COMMON].copy_from_slice(common.as_bytes());
        if self.header_digest {
            let digest = crc_fast::crc32_iscsi(&unit).to_le_bytes();
            unit.extend_from_slice(&digest);
        }
        unit.extend_from_slice(data);
        if self.data_digest && !data.is_empty() {
            unit.extend_from_slice(&crc_fast::crc32_iscsi(data).to_le_bytes());
        }
        unit
    }

    /// Changes a unit's header and makes its digest right again.
    #[must_use]
    pub fn altered(self, mut unit: Vec<u8>, alter: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let hlen = usize::from(unit[2]);
        alter(&mut unit);
        if self.header_digest {
            let digest = crc_fast::crc32_iscsi(&unit[..hlen]).to_le_bytes();
            unit[hlen..hlen + 4].copy_from_slice(&digest);
        }
        unit
    }

    /// A command capsule.
    #[must_use]
    pub fn capsule(self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        let header = CapsuleCmd {
            header: PduHeader::default(),
            sqe,
        };
        self.unit(PduType::CAPSULE_CMD, 0, &header, data)
    }

    /// Data from the host.
    #[must_use]
    pub fn h2c(self, cid: u16, ttag: u16, offset: u32, data: &[u8], last: bool) -> Vec<u8> {
        let header = H2CData {
            cccid: cid.into(),
            ttag: ttag.into(),
            datao: offset.into(),
            datal: u32::try_from(data.len()).unwrap().into(),
            ..H2CData::default()
        };
        let flags = if last { flags::LAST_PDU } else { 0 };
        self.unit(PduType::H2C_DATA, flags, &header, data)
    }

    /// Data from the controller.
    #[must_use]
    pub fn c2h(self, cid: u16, offset: u32, data: &[u8], flags: u8) -> Vec<u8> {
        let header = C2HData {
            cccid: cid.into(),
            datao: offset.into(),
            datal: u32::try_from(data.len()).unwrap().into(),
            ..C2HData::default()
        };
        self.unit(PduType::C2H_DATA, flags, &header, data)
    }

    /// A controller's request for data.
    #[must_use]
    pub fn r2t(self, cid: u16, ttag: u16, offset: u32, len: u32) -> Vec<u8> {
        let header = R2t {
            cccid: cid.into(),
            ttag: ttag.into(),
            r2to: offset.into(),
            r2tl: len.into(),
            ..R2t::default()
        };
        self.unit(PduType::R2T, 0, &header, &[])
    }

    /// A response capsule with this status and nothing else.
    #[must_use]
    pub fn response(self, cid: u16, status: Status) -> Vec<u8> {
        self.response_with(Cqe::new(cid).with_status(status))
    }

    /// A response capsule.
    #[must_use]
    pub fn response_with(self, cqe: Cqe) -> Vec<u8> {
        let header = CapsuleResp {
            header: PduHeader::default(),
            cqe,
        };
        self.unit(PduType::CAPSULE_RESP, 0, &header, &[])
    }

    /// Takes a whole unit apart, and checks its digests.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn read(self, unit: &[u8]) -> Result<Unit, String> {
        let (common, _) =
            PduHeader::read_from_prefix(unit).map_err(|_| "shorter than a header".to_owned())?;
        let hlen = usize::from(common.hlen);
        let has_digests = !matches!(
            common.pdu_type,
            PduType::IC_REQ | PduType::IC_RESP | PduType::H2C_TERM_REQ | PduType::C2H_TERM_REQ
        );
        if has_digests && common.has(flags::HDGST) != self.header_digest {
            return Err(format!("{common:?} against the digests negotiated"));
        }
        if has_digests && self.header_digest {
            let expected = crc_fast::crc32_iscsi(&unit[..hlen]).to_le_bytes();
            if unit.get(hlen..hlen + 4) != Some(&expected) {
                return Err(format!("{common:?} with a wrong header digest"));
            }
        }
        let mut data = Vec::new();
        if common.pdo != 0 {
            let with_digest = common.has(flags::DDGST);
            if with_digest != self.data_digest {
                return Err(format!("{common:?} against the digests negotiated"));
            }
            let end = unit.len() - if with_digest { 4 } else { 0 };
            data = unit[usize::from(common.pdo)..end].to_vec();
            if with_digest && unit[end..] != crc_fast::crc32_iscsi(&data).to_le_bytes() {
                return Err(format!("{common:?} with a wrong data digest"));
            }
        }
        Ok(Unit {
            pdu: common.pdu_type,
            flags: common.flags,
            bytes: unit.to_vec(),
            data,
        })
    }
}

/// A unit taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its type.
    pub pdu: PduType,
    /// Its flags.
    pub flags: u8,
    /// All of it.
    pub bytes: Vec<u8>,
    /// Its data.
    pub data: Vec<u8>,
}

impl Unit {
    fn header<T: FromBytes>(&self) -> T {
        T::read_from_prefix(&self.bytes)
            .map(|(header, _)| header)
            .unwrap_or_else(|_| panic!("{self:?} is too short"))
    }

    /// The entry of a command capsule.
    #[must_use]
    pub fn sqe(&self) -> Sqe {
        self.header::<CapsuleCmd>().sqe
    }

    /// The entry of a response capsule.
    #[must_use]
    pub fn cqe(&self) -> Cqe {
        self.header::<CapsuleResp>().cqe
    }

    /// Command id of a data unit or of a request for data.
    #[must_use]
    pub fn cid(&self) -> u16 {
        self.header::<R2t>().cccid.get()
    }

    /// A request for data: command id, transfer tag, offset and length.
    #[must_use]
    pub fn r2t(&self) -> (u16, u16, u32, u32) {
        let unit = self.header::<R2t>();
        (
            unit.cccid.get(),
            unit.ttag.get(),
            unit.r2to.get(),
            unit.r2tl.get(),
        )
    }

    /// Data from the controller: command id, offset and length.
    #[must_use]
    pub fn c2h(&self) -> (u16, u32, u32) {
        let unit = self.header::<C2HData>();
        (unit.cccid.get(), unit.datao.get(), unit.datal.get())
    }

    /// What a terminate request says: status and information.
    #[must_use]
    pub fn terminate(&self) -> (FatalError, u32) {
        let unit = self.header::<TermReq>();
        (unit.fatal_error(), unit.fei.get())
    }

    /// The answer to an initialisation request.
    #[must_use]
    pub fn ic_resp(&self) -> IcResp {
        self.header()
    }

    /// Whether this flag is set.
    #[must_use]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A request to initialise a connection.
#[must_use]
pub fn ic_req(hpda_z: u8, dgst: u8, max_r2t_z: u32) -> Vec<u8> {
    IcReq::new(hpda_z, dgst, max_r2t_z).as_bytes().to_vec()
}

/// The answer to it.
#[must_use]
pub fn ic_resp(cpda_z: u8, dgst: u8, max_h2c_data: u32) -> Vec<u8> {
    IcResp::new(cpda_z, dgst, max_h2c_data).as_bytes().to_vec()
}

/// A terminate request that repeats `echo`.
#[must_use]
pub fn terminate(pdu: PduType, error: FatalError, information: u32, echo: &[u8]) -> Vec<u8> {
    let mut unit = TermReq::new(pdu, error, information, u8::try_from(echo.len()).unwrap())
        .as_bytes()
        .to_vec();
    unit.extend_from_slice(echo);
    unit
}

/// Finds where units end in a stream of bytes.
#[derive(Debug, Default)]
pub struct Splitter {
    bytes: Vec<u8>,
}

impl Splitter {
    /// Adds bytes at the end.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole unit.
    pub fn next_unit(&mut self) -> Option<Vec<u8>> {
        let (common, _) = PduHeader::read_from_prefix(&self.bytes).ok()?;
        // A length that cannot be would stop the stream for good: such a unit is what is there.
        let len = usize::try_from(common.plen.get()).ok()?.max(COMMON);
        (self.bytes.len() >= len).then(|| self.bytes.drain(..len).collect())
    }

    /// The bytes that are no whole unit yet.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}
