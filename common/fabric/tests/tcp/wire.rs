//! Units built by hand, to say what a correct peer never says.

use homi_fabric::tcp::{ControllerConnection, ControllerEvent, HostConnection, HostEvent, TransportError};
use homi_spec::tcp::{
    C2HData, CapsuleCmd, CapsuleResp, FatalError, H2CData, IcReq, IcResp, PduHeader, PduType, R2t, TermReq,
    dgst, flags,
};
use homi_spec::{Cqe, Sqe, Status};
use zerocopy::{FromBytes, IntoBytes};

/// A writer of units with the digests of one connection and no alignment beyond four bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wire {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
}

pub(crate) const PLAIN: Wire = Wire {
    header_digest: false,
    data_digest: false,
};
pub(crate) const DIGESTS: Wire = Wire {
    header_digest: true,
    data_digest: true,
};

impl Wire {
    pub(crate) fn dgst(self) -> u8 {
        u8::from(self.header_digest) * dgst::HEADER + u8::from(self.data_digest) * dgst::DATA
    }

    /// A unit from a header whose common part is filled in here.
    fn unit<T: IntoBytes + zerocopy::Immutable>(
        self,
        pdu: PduType,
        mut flags: u8,
        header: &T,
        data: &[u8],
    ) -> Vec<u8> {
        let mut unit = header.as_bytes().to_vec();
        let hlen = unit.len();
        let mut len = hlen;
        if self.header_digest {
            flags |= flags::HDGST;
            len += 4;
        }
        let pdo = if data.is_empty() {
            0
        } else {
            u8::try_from(len).unwrap()
        };
        len += data.len();
        if self.data_digest && !data.is_empty() {
            flags |= flags::DDGST;
            len += 4;
        }
        let common = PduHeader::new(pdu, flags, pdo, u32::try_from(len).unwrap());
        unit[..8].copy_from_slice(common.as_bytes());
        unit[2] = u8::try_from(hlen).unwrap();
        let mut unit = self.sealed(&unit);
        unit.extend_from_slice(data);
        if self.data_digest && !data.is_empty() {
            unit.extend_from_slice(&crc_fast::crc32_iscsi(data).to_le_bytes());
        }
        unit
    }

    /// A header with its digest.
    pub(crate) fn sealed(self, header: &[u8]) -> Vec<u8> {
        let mut sealed = header.to_vec();
        if self.header_digest {
            sealed.extend_from_slice(&crc_fast::crc32_iscsi(header).to_le_bytes());
        }
        sealed
    }

    /// Changes bytes of a unit's header and makes its digest right again.
    pub(crate) fn altered(self, mut unit: Vec<u8>, alter: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let hlen = usize::from(unit[2]);
        alter(&mut unit);
        if self.header_digest {
            let digest = crc_fast::crc32_iscsi(&unit[..hlen]).to_le_bytes();
            unit[hlen..hlen + 4].copy_from_slice(&digest);
        }
        unit
    }

    pub(crate) fn capsule(self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        self.unit(
            PduType::CAPSULE_CMD,
            0,
            &CapsuleCmd {
                header: PduHeader::default(),
                sqe,
            },
            data,
        )
    }

    pub(crate) fn h2c(self, cid: u16, ttag: u16, offset: u32, data: &[u8], last: bool) -> Vec<u8> {
        let header = H2CData {
            cccid: cid.into(),
            ttag: ttag.into(),
            datao: offset.into(),
            datal: u32::try_from(data.len()).unwrap().into(),
            ..H2CData::default()
        };
        self.unit(
            PduType::H2C_DATA,
            if last { flags::LAST_PDU } else { 0 },
            &header,
            data,
        )
    }

    pub(crate) fn c2h(self, cid: u16, offset: u32, data: &[u8], flags: u8) -> Vec<u8> {
        let header = C2HData {
            cccid: cid.into(),
            datao: offset.into(),
            datal: u32::try_from(data.len()).unwrap().into(),
            ..C2HData::default()
        };
        self.unit(PduType::C2H_DATA, flags, &header, data)
    }

    pub(crate) fn r2t(self, cid: u16, ttag: u16, offset: u32, len: u32) -> Vec<u8> {
        let header = R2t {
            cccid: cid.into(),
            ttag: ttag.into(),
            r2to: offset.into(),
            r2tl: len.into(),
            ..R2t::default()
        };
        self.unit(PduType::R2T, 0, &header, &[])
    }

    pub(crate) fn response(self, cid: u16, status: Status) -> Vec<u8> {
        let cqe = Cqe::new(cid).with_status(status);
        self.unit(
            PduType::CAPSULE_RESP,
            0,
            &CapsuleResp {
                header: PduHeader::default(),
                cqe,
            },
            &[],
        )
    }
}

pub(crate) fn ic_req(hpda_z: u8, dgst: u8, max_r2t_z: u32) -> Vec<u8> {
    IcReq::new(hpda_z, dgst, max_r2t_z).as_bytes().to_vec()
}

pub(crate) fn ic_resp(cpda_z: u8, dgst: u8, max_h2c_data: u32) -> Vec<u8> {
    IcResp::new(cpda_z, dgst, max_h2c_data).as_bytes().to_vec()
}

pub(crate) fn terminate(pdu: PduType, error: FatalError, information: u32, echo: &[u8]) -> Vec<u8> {
    let mut unit = TermReq::new(pdu, error, information, u8::try_from(echo.len()).unwrap())
        .as_bytes()
        .to_vec();
    unit.extend_from_slice(echo);
    unit
}

/// The last unit that an end queued, read as a terminate request.
pub(crate) fn terminate_request(output: &[u8], pdu: PduType) -> TermReq {
    let (request, echo) = TermReq::read_from_prefix(output).expect("a terminate request");
    assert_eq!(request.header.pdu_type, pdu);
    assert_eq!(usize::try_from(request.header.plen.get()).unwrap(), output.len());
    assert!((24..=152).contains(&output.len()));
    assert_eq!(
        (request.header.hlen, request.header.flags, request.header.pdo),
        (24, 0, 0)
    );
    assert_eq!(request.reserved14, [0; 10]);
    assert!(echo.len() <= 128);
    request
}

/// One end of a connection under attack.
pub(crate) trait Attacked {
    type Event: std::fmt::Debug;
    const ANSWERS: PduType;
    fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Self::Event>, TransportError>;
    fn sent(&mut self) -> Vec<u8>;
    /// Bytes that wait to be sent.
    fn queued(&mut self) -> usize;
    fn over(&self) -> bool;

    /// Feeds bytes that must be understood, and returns the events.
    fn takes(&mut self, bytes: &[u8]) -> Vec<Self::Event> {
        let mut input = bytes;
        let mut events = Vec::new();
        while let Some(event) = self.feed(&mut input).expect("nothing is wrong with these bytes") {
            events.push(event);
        }
        assert!(input.is_empty());
        events
    }

    /// Feeds bytes that must break the connection: whole, cut at every byte, and followed by more. The terminate request
    /// must carry the error, and nothing may come of later bytes.
    fn breaks(&mut self, bytes: &[u8]) -> TransportError {
        let queued = self.queued();
        let mut found = None;
        // The cut alternates so that both header paths are attacked.
        let cut = if bytes.len().is_multiple_of(2) {
            bytes.len().max(1)
        } else {
            1
        };
        'feeding: for part in bytes.chunks(cut) {
            let mut input = part;
            loop {
                match self.feed(&mut input) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        found = Some(error);
                        break 'feeding;
                    }
                }
            }
        }
        let error = found.expect("these bytes break the protocol");
        assert!(self.over());
        let (fatal_error, information) = error.fatal_error();
        let request = terminate_request(&self.sent()[queued..], Self::ANSWERS);
        assert_eq!(
            (request.fatal_error(), request.fei.get()),
            (fatal_error, information)
        );
        assert!(!error.to_string().is_empty());
        // What comes after is swallowed, and answered by nothing.
        let mut rest: &[u8] = &[4; 300];
        assert!(matches!(self.feed(&mut rest), Ok(None)));
        assert!(rest.is_empty() && self.sent().is_empty());
        error
    }
}

impl Attacked for ControllerConnection {
    type Event = ControllerEvent;
    const ANSWERS: PduType = PduType::C2H_TERM_REQ;

    fn feed(&mut self, input: &mut &[u8]) -> Result<Option<ControllerEvent>, TransportError> {
        self.advance(input)
    }

    fn sent(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        crate::pair::drain_into(self.output(), &mut bytes);
        bytes
    }

    fn queued(&mut self) -> usize {
        self.output().remaining()
    }

    fn over(&self) -> bool {
        self.failed() && !self.is_ready()
    }
}

impl Attacked for HostConnection {
    type Event = HostEvent;
    const ANSWERS: PduType = PduType::H2C_TERM_REQ;

    fn feed(&mut self, input: &mut &[u8]) -> Result<Option<HostEvent>, TransportError> {
        self.advance(input)
    }

    fn sent(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        crate::pair::drain_into(self.output(), &mut bytes);
        bytes
    }

    fn queued(&mut self) -> usize {
        self.output().remaining()
    }

    fn over(&self) -> bool {
        self.failed() && !self.is_ready()
    }
}
