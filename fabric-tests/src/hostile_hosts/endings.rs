//! Hosts that go at the worst moment.

use homi_queue::Command;
use homi_spec::Sgl;
use homi_spec::tcp::PduType;

use super::{Field, waiting_write};
use crate::harness::Harness;
use crate::peer::End;
use crate::units::Units;

/// The host goes at every point of a write: in the capsule, before its data, in the middle of it, before the answer.
pub fn gone_in_the_middle_of_a_write<H: Harness>() {
    let mut field = Field::<H>::new();
    for reset in [false, true] {
        for cut in [
            1,
            60,
            72,
            100,
            72 + 24,
            72 + 24 + 1,
            72 + 24 + (32 << 10),
            72 + 24 + (64 << 10),
        ] {
            let (admin, mut io) = field.connected(Units::PLAIN);
            let cid = io.next_cid();
            let mut sqe = Command::write(2, 512, 16).0;
            sqe.cid = cid.into();
            sqe.set_sgl(Sgl::transport(64 << 10));
            let capsule = io.units().capsule(sqe, &[]);
            io.send(&capsule[..cut.min(72)]);
            if cut > 72 {
                let (_, ttag, ..) = io.expect(PduType::R2T).r2t();
                let unit = io.units().h2c(cid, ttag, 0, &vec![1; 64 << 10], true);
                io.send(&unit[..cut - 72]);
            }
            if reset {
                io.reset()
            } else {
                io.close()
            }
            drop(admin);
        }
    }
    field.survives();
}

/// The admin connection goes first: its queues go with it.
pub fn the_admin_connection_goes_first<H: Harness>() {
    let mut field = Field::<H>::new();
    for reset in [false, true] {
        let (admin, io, ..) = waiting_write(&mut field, Units::PLAIN);
        if reset {
            admin.reset()
        } else {
            admin.close()
        }
        let mut io = io;
        assert_eq!(io.end(), End::Closed);
        drop(io);
        field.survives();
    }
}
