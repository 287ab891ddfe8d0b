//! Messages of in-band authentication: the payloads of Authentication Send and Receive. Base 2.0 §8.13.
//!
//! Each struct is a message's fixed part; `parse` checks the lengths it announces against what came and hands
//! out the variable parts. DH-HMAC-CHAP is the only protocol defined.
//!
//! Not implemented: any arithmetic, the order of messages, and secrets in their text form.

use crate::macros::open_enum;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

open_enum! {
    /// Whom a message belongs to (AUTH_TYPE). Base 2.0 §8.13.1.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct AuthType(u8) {
        /// Messages of every protocol: negotiation and failures.
        COMMON = 0x00;
        /// DH-HMAC-CHAP.
        DH_HMAC_CHAP = 0x01;
    }
}
const _: () = assert!(size_of::<AuthType>() == 1);

open_enum! {
    /// Which message this is (AUTH_ID). Base 2.0 §8.13.1.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct AuthId(u8) {
        /// AUTH_Negotiate, host to controller.
        NEGOTIATE = 0x00;
        /// DH-HMAC-CHAP_Challenge, controller to host.
        CHALLENGE = 0x01;
        /// DH-HMAC-CHAP_Reply, host to controller.
        REPLY = 0x02;
        /// DH-HMAC-CHAP_Success1, controller to host.
        SUCCESS1 = 0x03;
        /// DH-HMAC-CHAP_Success2, host to controller.
        SUCCESS2 = 0x04;
        /// AUTH_Failure2, host to controller.
        FAILURE2 = 0xf0;
        /// AUTH_Failure1, controller to host.
        FAILURE1 = 0xf1;
    }
}
const _: () = assert!(size_of::<AuthId>() == 1);

open_enum! {
    /// Hash function of DH-HMAC-CHAP. Base 2.0 §8.13.5.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct HashId(u8) {
        /// SHA-256.
        SHA_256 = 0x01;
        /// SHA-384.
        SHA_384 = 0x02;
        /// SHA-512.
        SHA_512 = 0x03;
    }
}
const _: () = assert!(size_of::<HashId>() == 1);

impl HashId {
    /// Bytes of a digest, or `None` for an unknown function.
    pub const fn digest_len(self) -> Option<usize> {
        match self {
            Self::SHA_256 => Some(32),
            Self::SHA_384 => Some(48),
            Self::SHA_512 => Some(64),
            _ => None,
        }
    }
}

open_enum! {
    /// Diffie-Hellman group of DH-HMAC-CHAP: those of RFC 7919. Base 2.0 §8.13.5.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct DhGroupId(u8) {
        /// No exchange.
        NULL = 0x00;
        /// ffdhe2048.
        FFDHE_2048 = 0x01;
        /// ffdhe3072.
        FFDHE_3072 = 0x02;
        /// ffdhe4096.
        FFDHE_4096 = 0x03;
        /// ffdhe6144.
        FFDHE_6144 = 0x04;
        /// ffdhe8192.
        FFDHE_8192 = 0x05;
    }
}
const _: () = assert!(size_of::<DhGroupId>() == 1);

open_enum! {
    /// Why authentication failed: the explanation of reason code 01h. Base 2.0 §8.13.3.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct FailureExplanation(u8) {
        /// Authentication failed.
        FAILED = 0x01;
        /// No protocol is usable.
        PROTOCOL_UNUSABLE = 0x02;
        /// Secure channel concatenation does not match.
        CONCATENATION_MISMATCH = 0x03;
        /// No hash function is usable.
        HASH_UNUSABLE = 0x04;
        /// No group is usable.
        DH_GROUP_UNUSABLE = 0x05;
        /// A payload is malformed.
        INCORRECT_PAYLOAD = 0x06;
        /// A message came out of order.
        INCORRECT_MESSAGE = 0x07;
    }
}
const _: () = assert!(size_of::<FailureExplanation>() == 1);

/// A payload that does not hold the message it announces.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the authentication message needs {need} bytes, {have} came")]
pub struct AuthLengthError {
    /// Bytes that the fixed part and its announced lengths ask for.
    pub need: usize,
    /// Bytes received.
    pub have: usize,
}

/// The fixed part at the start of a payload, and what follows it.
fn fixed<T: FromBytes + Immutable + KnownLayout + Unaligned>(
    payload: &[u8],
) -> Result<(&T, &[u8]), AuthLengthError> {
    T::ref_from_prefix(payload).map_err(|_| AuthLengthError {
        need: size_of::<T>(),
        have: payload.len(),
    })
}

/// Splits `first` bytes off what follows a fixed part of `T`, then `second` bytes.
fn variable<T>(rest: &[u8], first: usize, second: usize) -> Result<(&[u8], &[u8]), AuthLengthError> {
    let error = AuthLengthError {
        need: size_of::<T>() + first + second,
        have: size_of::<T>() + rest.len(),
    };
    let (head, rest) = rest.split_at_checked(first).ok_or(error)?;
    Ok((head, rest.get(..second).ok_or(error)?))
}

/// The start of every message: enough to tell which it is. Base 2.0 §8.13.1.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct AuthHeader {
    /// Whom the message belongs to.
    pub auth_type: AuthType,
    /// Which message.
    pub auth_id: AuthId,
    /// Reserved.
    pub reserved2: [u8; 2],
    /// Transaction, chosen by the host.
    pub t_id: U16,
}
const _: () = assert!(size_of::<AuthHeader>() == 6);

impl AuthHeader {
    /// The start of a message.
    pub fn new(auth_type: AuthType, auth_id: AuthId, t_id: u16) -> Self {
        Self {
            auth_type,
            auth_id,
            reserved2: [0; 2],
            t_id: U16::new(t_id),
        }
    }

    /// The start of a payload.
    ///
    /// # Errors
    /// A payload that is too short.
    pub fn parse(payload: &[u8]) -> Result<&Self, AuthLengthError> {
        fixed(payload).map(|(header, _)| header)
    }
}

/// A protocol that the host offers: 64 bytes. Base 2.0 §8.13.2.
#[derive(Copy, Clone, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ProtocolDescriptor {
    /// Protocol: 01h is DH-HMAC-CHAP.
    pub auth_id: u8,
    /// Reserved.
    pub reserved1: u8,
    /// Hash functions in the list.
    pub halen: u8,
    /// Groups in the list.
    pub dhlen: u8,
    /// Hash functions, best first.
    pub hash_ids: [HashId; 30],
    /// Groups, best first.
    pub dh_ids: [DhGroupId; 30],
}
const _: () = assert!(size_of::<ProtocolDescriptor>() == 64);

impl ProtocolDescriptor {
    /// Protocol identifier of DH-HMAC-CHAP.
    pub const DH_HMAC_CHAP: u8 = 0x01;

    /// Offers these functions and groups; what is beyond 30 of either is dropped.
    pub fn new(hashes: &[HashId], groups: &[DhGroupId]) -> Self {
        let mut descriptor = Self::new_zeroed();
        descriptor.auth_id = Self::DH_HMAC_CHAP;
        for (to, from) in descriptor.hash_ids.iter_mut().zip(hashes) {
            *to = *from;
            descriptor.halen += 1;
        }
        for (to, from) in descriptor.dh_ids.iter_mut().zip(groups) {
            *to = *from;
            descriptor.dhlen += 1;
        }
        descriptor
    }

    /// The functions offered; a count beyond the list is cut.
    pub fn hashes(&self) -> &[HashId] {
        self.hash_ids
            .get(..usize::from(self.halen))
            .unwrap_or(&self.hash_ids)
    }

    /// The groups offered; a count beyond the list is cut.
    pub fn groups(&self) -> &[DhGroupId] {
        self.dh_ids.get(..usize::from(self.dhlen)).unwrap_or(&self.dh_ids)
    }
}

/// AUTH_Negotiate: 8 bytes, then a [`ProtocolDescriptor`] for each protocol. Base 2.0 §8.13.2.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Negotiate {
    /// Start.
    pub header: AuthHeader,
    /// Secure channel concatenation (SC_C): 0 none, 1 TLS with the key generated here.
    pub sc_c: u8,
    /// Protocol descriptors that follow (NAPD).
    pub napd: u8,
}
const _: () = assert!(size_of::<Negotiate>() == 8);

impl Negotiate {
    /// The message and its descriptors.
    ///
    /// # Errors
    /// A payload that is shorter than it announces.
    pub fn parse(payload: &[u8]) -> Result<(&Self, &[ProtocolDescriptor]), AuthLengthError> {
        let (message, rest) = fixed::<Self>(payload)?;
        let count = usize::from(message.napd);
        let (descriptors, _) =
            <[ProtocolDescriptor]>::ref_from_prefix_with_elems(rest, count).map_err(|_| AuthLengthError {
                need: size_of::<Self>() + count * size_of::<ProtocolDescriptor>(),
                have: payload.len(),
            })?;
        Ok((message, descriptors))
    }
}

/// DH-HMAC-CHAP_Challenge: 16 bytes, then the challenge and the controller's public value. Base 2.0 §8.13.5.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Challenge {
    /// Start.
    pub header: AuthHeader,
    /// Bytes of the challenge: the digest's length (HL).
    pub hl: u8,
    /// Reserved.
    pub reserved7: u8,
    /// Hash function chosen.
    pub hash_id: HashId,
    /// Group chosen.
    pub dh_id: DhGroupId,
    /// Bytes of the public value; 0 with [`DhGroupId::NULL`].
    pub dhvlen: U16,
    /// Sequence number (SEQNUM).
    pub seqnum: U32,
}
const _: () = assert!(size_of::<Challenge>() == 16);

impl Challenge {
    /// The message, its challenge and its public value.
    ///
    /// # Errors
    /// A payload that is shorter than it announces.
    pub fn parse(payload: &[u8]) -> Result<(&Self, &[u8], &[u8]), AuthLengthError> {
        let (message, rest) = fixed::<Self>(payload)?;
        let (challenge, value) =
            variable::<Self>(rest, usize::from(message.hl), usize::from(message.dhvlen.get()))?;
        Ok((message, challenge, value))
    }
}

/// DH-HMAC-CHAP_Reply: 16 bytes, then the response, the host's challenge and the host's public value. Base
/// 2.0 §8.13.5.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Reply {
    /// Start.
    pub header: AuthHeader,
    /// Bytes of the response, and of the challenge (HL).
    pub hl: u8,
    /// Reserved.
    pub reserved7: u8,
    /// 1 where the host challenges the controller: the challenge is valid (CVALID).
    pub cvalid: u8,
    /// Reserved.
    pub reserved9: u8,
    /// Bytes of the public value.
    pub dhvlen: U16,
    /// Sequence number of the host's challenge.
    pub seqnum: U32,
}
const _: () = assert!(size_of::<Reply>() == 16);

/// The variable parts of a [`Reply`].
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct ReplyValues<'a> {
    /// Response to the controller's challenge.
    pub response: &'a [u8],
    /// The host's challenge; without meaning unless CVALID is set.
    pub challenge: &'a [u8],
    /// The host's public value.
    pub dh_value: &'a [u8],
}

impl Reply {
    /// The message and its values.
    ///
    /// # Errors
    /// A payload that is shorter than it announces.
    pub fn parse(payload: &[u8]) -> Result<(&Self, ReplyValues<'_>), AuthLengthError> {
        let (message, rest) = fixed::<Self>(payload)?;
        let hl = usize::from(message.hl);
        let (digests, dh_value) = variable::<Self>(rest, 2 * hl, usize::from(message.dhvlen.get()))?;
        let (response, challenge) = digests.split_at(hl);
        Ok((
            message,
            ReplyValues {
                response,
                challenge,
                dh_value,
            },
        ))
    }
}

/// DH-HMAC-CHAP_Success1: 16 bytes, then the controller's response where the host asked for one. Base 2.0
/// §8.13.5.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Success1 {
    /// Start.
    pub header: AuthHeader,
    /// Bytes of the response (HL).
    pub hl: u8,
    /// Reserved.
    pub reserved7: u8,
    /// 1 where the response is valid (RVALID).
    pub rvalid: u8,
    /// Reserved.
    pub reserved9: [u8; 7],
}
const _: () = assert!(size_of::<Success1>() == 16);

impl Success1 {
    /// The message and its response; empty where RVALID is clear.
    ///
    /// # Errors
    /// A payload that is shorter than it announces.
    pub fn parse(payload: &[u8]) -> Result<(&Self, &[u8]), AuthLengthError> {
        let (message, rest) = fixed::<Self>(payload)?;
        let length = if message.rvalid & 1 != 0 {
            usize::from(message.hl)
        } else {
            0
        };
        let (response, _) = variable::<Self>(rest, length, 0)?;
        Ok((message, response))
    }
}

/// DH-HMAC-CHAP_Success2: 16 bytes. Base 2.0 §8.13.5.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Success2 {
    /// Start.
    pub header: AuthHeader,
    /// Reserved.
    pub reserved6: [u8; 10],
}
const _: () = assert!(size_of::<Success2>() == 16);

/// AUTH_Failure1 and AUTH_Failure2: 8 bytes. Base 2.0 §8.13.3.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Failure {
    /// Start.
    pub header: AuthHeader,
    /// Reason: 01h is the only one defined.
    pub reason: u8,
    /// Explanation.
    pub explanation: FailureExplanation,
}
const _: () = assert!(size_of::<Failure>() == 8);

impl Failure {
    /// The reason code defined: authentication failed.
    pub const REASON_FAILED: u8 = 0x01;

    /// The message of a payload.
    ///
    /// # Errors
    /// A payload that is too short.
    pub fn parse(payload: &[u8]) -> Result<&Self, AuthLengthError> {
        fixed(payload).map(|(message, _)| message)
    }
}
