//! [`Link`]: a cable between two guests with a relay of ours in it, which does to frames what a [`Plan`] says.
//!
//! What happens to a frame depends on the seed, the direction and the frame's number in that direction alone, so a plan does the same to the
//! same traffic every time. (Retransmissions depend on time, so traffic of a real kernel is never quite the same.)

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use homi_reactor::socket::wait_readable;

use super::guest::{link_in, link_out};
use super::test::Failure;
use crate::random::Random;

/// Largest frame that a guest can send: a virtual network card of QEMU hands on at most this.
const LARGEST_FRAME: usize = 70_000;
/// Frames that wait in one direction, at most; more are dropped and counted.
const WAITING: usize = 8192;
/// Longest sleep of the relay.
const LOOK: Duration = Duration::from_millis(20);
/// Pause after a guest did not take a frame: its QEMU is behind or paused.
const RETRY: Duration = Duration::from_millis(1);

/// What a link does to the frames that go over it, in both directions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Fraction of frames that are lost.
    pub loss: f64,
    /// Fraction of frames that arrive twice.
    pub duplicate: f64,
    /// Fraction of frames that arrive `reorder_by` later than they would, so that others overtake them.
    pub reorder: f64,
    /// How much later those come.
    pub reorder_by: Duration,
    /// How long each frame takes.
    pub delay: Duration,
    /// How much longer a frame may take, evenly spread.
    pub jitter: Duration,
    /// Nothing arrives.
    pub cut: bool,
    /// What the fates of frames are drawn from.
    pub seed: u64,
}

impl Plan {
    /// A cable.
    pub const CLEAN: Self = Self {
        loss: 0.0,
        duplicate: 0.0,
        reorder: 0.0,
        reorder_by: Duration::from_millis(5),
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        cut: false,
        seed: 1,
    };

    /// A cable that is cut.
    pub const CUT: Self = Self {
        cut: true,
        ..Self::CLEAN
    };

    /// What happens to the frame with this number (from 0) in a direction (0 from the guest with the lower index, 1 towards it).
    #[must_use]
    pub fn fate(&self, direction: usize, number: u64) -> Fate {
        if self.cut {
            return Fate::Lost;
        }
        let mut draws = Draws::new(self.seed, direction, number);
        // Every frame draws the same number of times, so that one fraction's change leaves the others' choices alone.
        let lost = draws.chance(self.loss);
        let twice = draws.chance(self.duplicate);
        let late = draws.chance(self.reorder);
        let more = draws.part(self.jitter);
        if lost {
            return Fate::Lost;
        }
        let delay = self.delay + more + if late { self.reorder_by } else { Duration::ZERO };
        Fate::Arrives {
            after: delay,
            twice,
            late,
        }
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self::CLEAN
    }
}

/// What happens to one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It never arrives.
    Lost,
    /// It arrives.
    Arrives {
        /// So much later than it was sent.
        after: Duration,
        /// Two times.
        twice: bool,
        /// Later than others that were sent after it, if there are any.
        late: bool,
    },
}

/// The numbers that a frame's fate is drawn from.
struct Draws(Random);

impl Draws {
    fn new(seed: u64, direction: usize, number: u64) -> Self {
        let direction = if direction == 0 { 0 } else { 0x5851_f42d_4c95_7f2d };
        let mut first = Random::new(seed ^ direction ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        // Seeds that are neighbours give numbers that are not.
        Self(Random::new(first.next_number()))
    }

    /// A number from 0 up to, not including, 1.
    fn fraction(&mut self) -> f64 {
        let bits = u32::try_from(self.0.next_number() >> 32).unwrap_or_default();
        f64::from(bits) / (f64::from(u32::MAX) + 1.0)
    }

    fn chance(&mut self, of: f64) -> bool {
        self.fraction() < of
    }

    fn part(&mut self, of: Duration) -> Duration {
        of.mul_f64(self.fraction())
    }
}

/// What a link has done since its plan was set; both directions together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that guests sent.
    pub sent: u64,
    /// Frames that guests received, duplicates included.
    pub delivered: u64,
    /// Frames lost by plan.
    pub lost: u64,
    /// Frames that were sent on twice.
    pub duplicated: u64,
    /// Frames that were held back so that others overtake them.
    pub reordered: u64,
    /// Frames dropped because too many were waiting.
    pub overrun: u64,
}

#[derive(Debug)]
struct Shared {
    plan: Mutex<Setting>,
    ended: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct Setting {
    plan: Plan,
    /// Numbers of the next frames.
    next: [u64; 2],
    counts: Counts,
}

impl Setting {
    fn new(plan: Plan) -> Self {
        Self {
            plan,
            next: [0; 2],
            counts: Counts::default(),
        }
    }
}

impl Shared {
    fn setting(&self) -> MutexGuard<'_, Setting> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cable between two guests.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Starts the relay of a link; its guests find the sockets in this folder.
    ///
    /// # Errors
    /// The sockets cannot be made.
    pub fn start(folder: &Path, link: usize, guests: [usize; 2]) -> Result<Self, Failure> {
        let mut sides = Vec::new();
        for guest in guests {
            let path = folder.join(link_out(link, guest));
            // Left by an earlier relay of the same folder.
            let _ = fs::remove_file(&path);
            let from = UnixDatagram::bind(&path)?;
            from.set_nonblocking(true)?;
            sides.push(Side {
                from,
                to: folder.join(link_in(link, guest)),
            });
        }
        let shared = Arc::new(Shared {
            plan: Mutex::new(Setting::new(Plan::CLEAN)),
            ended: AtomicBool::new(false),
        });
        let relay = Relay {
            sides,
            waiting: [BinaryHeap::new(), BinaryHeap::new()],
            order: 0,
            shared: Arc::clone(&shared),
        };
        let thread = thread::Builder::new()
            .name(format!("link-{link}"))
            .spawn(move || relay.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Does this to frames from now on; frames are counted from 0 again. Those under way arrive as they were to, unless it is cut.
    pub fn set(&self, plan: Plan) {
        *self.shared.setting() = Setting::new(plan);
    }

    /// What it has done since the plan was set.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.setting().counts
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A relay that panicked has said so, and its guests lost their link.
            let _ = thread.join();
        }
    }
}

/// One guest's end.
struct Side {
    from: UnixDatagram,
    to: PathBuf,
}

/// A frame under way: when it is due, its order among equals, the frame.
type Waiting = Reverse<(Instant, u64, Vec<u8>)>;

struct Relay {
    sides: Vec<Side>,
    /// Frames on their way from the side with this index.
    waiting: [BinaryHeap<Waiting>; 2],
    order: u64,
    shared: Arc<Shared>,
}

impl Relay {
    fn run(mut self) {
        let mut buffer = vec![0; LARGEST_FRAME];
        while !self.shared.ended.load(Ordering::Relaxed) {
            let now = Instant::now();
            let mut sleep = LOOK;
            for direction in 0..2 {
                if let Some(due) = self.deliver(direction, now) {
                    sleep = sleep.min(due.saturating_duration_since(now).max(RETRY));
                }
            }
            let sockets: Vec<_> = self.sides.iter().map(|side| side.from.as_fd()).collect();
            if wait_readable(&sockets, Some(sleep)).is_err() {
                thread::sleep(RETRY);
            }
            for direction in 0..2 {
                self.receive(direction, &mut buffer);
            }
        }
    }

    fn receive(&mut self, direction: usize, buffer: &mut [u8]) {
        let (Some(side), Some(waiting)) = (self.sides.get(direction), self.waiting.get_mut(direction)) else {
            return;
        };
        // Not for ever: frames that are due go out in between.
        for _ in 0..64 {
            let Ok(len) = side.from.recv(buffer) else { return };
            let frame = buffer.get(..len).unwrap_or_default();
            let now = Instant::now();
            let mut setting = self.shared.setting();
            let Some(number) = setting.next.get_mut(direction) else {
                return;
            };
            let this = *number;
            *number += 1;
            setting.counts.sent += 1;
            match setting.plan.fate(direction, this) {
                Fate::Lost => setting.counts.lost += 1,
                Fate::Arrives { .. } if waiting.len() >= WAITING => setting.counts.overrun += 1,
                Fate::Arrives { after, twice, late } => {
                    setting.counts.reordered += u64::from(late);
                    setting.counts.duplicated += u64::from(twice);
                    for _ in 0..=usize::from(twice) {
                        waiting.push(Reverse((now + after, self.order, frame.to_vec())));
                        self.order += 1;
                    }
                }
            }
        }
    }

    /// Sends what is due; when the next one is.
    fn deliver(&mut self, direction: usize, now: Instant) -> Option<Instant> {
        let to = self.sides.get(1 - direction)?;
        let waiting = self.waiting.get_mut(direction)?;
        while let Some(Reverse((due, ..))) = waiting.peek() {
            if *due > now {
                return Some(*due);
            }
            let Reverse((due, order, frame)) = waiting.pop()?;
            // Locked until it is counted: who has received a frame finds it counted.
            let mut setting = self.shared.setting();
            if setting.plan.cut {
                setting.counts.lost += 1;
                continue;
            }
            // From the socket that this guest sends to: it may take frames from nowhere else.
            match to.from.send_to(&frame, &to.to) {
                Ok(_) => setting.counts.delivered += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    waiting.push(Reverse((due, order, frame)));
                    return Some(now + RETRY);
                }
                // The other guest has not been started yet, or is gone: a cable that leads nowhere.
                Err(_) => setting.counts.overrun += 1,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_does_the_same_to_the_same_frames() {
        let plan = Plan {
            loss: 0.1,
            duplicate: 0.2,
            reorder: 0.3,
            jitter: Duration::from_millis(7),
            delay: Duration::from_millis(1),
            ..Plan::CLEAN
        };
        let fates = |plan: Plan, direction| -> Vec<Fate> {
            (0..20_000).map(|number| plan.fate(direction, number)).collect()
        };
        assert_eq!(fates(plan, 0), fates(plan, 0));
        assert_ne!(fates(plan, 0), fates(plan, 1));
        assert_ne!(fates(plan, 0), fates(Plan { seed: 2, ..plan }, 0));
        let lost = fates(plan, 0).iter().filter(|fate| **fate == Fate::Lost).count();
        assert!((1800..2200).contains(&lost), "{lost} of 20000 lost");
        let twice = fates(plan, 0)
            .iter()
            .filter(|fate| matches!(fate, Fate::Arrives { twice: true, .. }))
            .count();
        assert!((3300..3900).contains(&twice), "{twice} of 20000 twice");
        for fate in fates(plan, 1) {
            if let Fate::Arrives { after, late, .. } = fate {
                let least = if late { 6 } else { 1 };
                assert!(
                    (least..=least + 7).contains(&after.as_millis()),
                    "{after:?} {late}"
                );
            }
        }
    }

    #[test]
    fn a_changed_fraction_leaves_other_choices_alone() {
        let plan = Plan {
            loss: 0.05,
            duplicate: 0.1,
            ..Plan::CLEAN
        };
        let more = Plan {
            duplicate: 0.5,
            ..plan
        };
        for number in 0..5000 {
            assert_eq!(
                plan.fate(0, number) == Fate::Lost,
                more.fate(0, number) == Fate::Lost
            );
        }
        assert_eq!(
            Plan::CLEAN.fate(0, 3),
            Fate::Arrives {
                after: Duration::ZERO,
                twice: false,
                late: false
            }
        );
        assert_eq!(Plan::CUT.fate(1, 3), Fate::Lost);
    }

    /// A link and the ends that QEMU would have.
    fn ends(folder: &Path) -> (Link, Vec<UnixDatagram>) {
        let link = Link::start(folder, 0, [0, 1]).unwrap();
        let ends = [0, 1].map(|guest| {
            let end = UnixDatagram::bind(folder.join(link_in(0, guest))).unwrap();
            end.connect(folder.join(link_out(0, guest))).unwrap();
            end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            end
        });
        (link, ends.into())
    }

    #[test]
    fn frames_pass_both_ways_and_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (link, ends) = ends(folder.path());
        let mut frame = [0; 16];
        for (from, to) in [(0, 1), (1, 0)] {
            for number in 0..100_u8 {
                // The relay's socket holds few frames: a blocking send waits for it.
                ends[from].send(&[number]).unwrap();
                assert_eq!(ends[to].recv(&mut frame).unwrap(), 1);
                assert_eq!(frame[0], number);
            }
        }
        assert_eq!(
            link.counts(),
            Counts {
                sent: 200,
                delivered: 200,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn a_duplicated_and_a_cut_frame() {
        let folder = tempfile::tempdir().unwrap();
        let (link, ends) = ends(folder.path());
        link.set(Plan {
            duplicate: 1.0,
            ..Plan::CLEAN
        });
        let mut frame = [0; 16];
        ends[0].send(b"frame").unwrap();
        for _ in 0..2 {
            assert_eq!(ends[1].recv(&mut frame).unwrap(), 5);
        }
        assert_eq!(
            link.counts(),
            Counts {
                sent: 1,
                delivered: 2,
                duplicated: 1,
                ..Counts::default()
            }
        );
        link.set(Plan::CUT);
        ends[0].send(b"frame").unwrap();
        while link.counts().lost == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        ends[1].set_nonblocking(true).unwrap();
        assert!(ends[1].recv(&mut frame).is_err());
    }

    #[test]
    fn a_delayed_frame_arrives_after_its_delay() {
        let folder = tempfile::tempdir().unwrap();
        let (link, ends) = ends(folder.path());
        link.set(Plan {
            delay: Duration::from_millis(50),
            ..Plan::CLEAN
        });
        let start = Instant::now();
        ends[1].send(b"frame").unwrap();
        let mut frame = [0; 16];
        ends[0].recv(&mut frame).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(50));
    }
}
