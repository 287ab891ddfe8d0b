//! The bodies on their seeds, and on thousands of mutations of them, without a fuzzer.

use std::collections::BTreeMap;
use std::fs;
use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use super::choices::Dice;
use super::seeds::{self, Seed};
use super::{BODIES, Reached};

/// How long all bodies together may take for mutations.
const BUDGET: Duration = Duration::from_secs(9);
/// Mutations of one body at most.
const MUTATIONS: usize = 2000;

fn run(body: &str, name: &str, bytes: &[u8]) -> Reached {
    let found = BODIES.iter().find(|candidate| candidate.name == body).unwrap();
    let reach = found.reach;
    let input = bytes.to_vec();
    match catch_unwind(move || reach(&input)) {
        Ok(reached) => reached,
        Err(panic) => {
            let path = std::env::temp_dir().join(format!("homi-{body}-{name}"));
            fs::write(&path, bytes).unwrap();
            eprintln!("{body} failed on {name}: the input is in {}", path.display());
            std::panic::resume_unwind(panic)
        }
    }
}

fn add(sum: &mut Reached, one: Reached) {
    sum.ready += one.ready;
    sum.commands += one.commands;
    sum.completions += one.completions;
    sum.transfers += one.transfers;
    sum.failures += one.failures;
    sum.errors += one.errors;
    sum.terminations += one.terminations;
}

#[test]
fn the_committed_corpora_are_what_is_generated() {
    let mut expected: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for Seed { body, name, bytes } in seeds::all() {
        assert!(bytes.len() <= 16384, "{body}/{name} has {} bytes", bytes.len());
        let known = expected.insert(format!("{body}/{name}"), bytes);
        assert!(known.is_none(), "{body}/{name} is made twice");
    }
    let mut found = BTreeMap::new();
    for folder in fs::read_dir(seeds::folder()).unwrap() {
        let folder = folder.unwrap();
        for file in fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            let [folder, name] =
                [folder.file_name(), file.file_name()].map(|name| name.into_string().unwrap());
            found.insert(format!("{folder}/{name}"), fs::read(file.path()).unwrap());
        }
    }
    for (name, bytes) in &expected {
        assert!(
            found.get(name) == Some(bytes),
            "fuzz/corpus/{name} is not what is generated: run cargo run -p fabric-tests --bin fuzz-seeds"
        );
    }
    for name in found.keys() {
        assert!(
            expected.contains_key(name),
            "fuzz/corpus/{name} is not generated: remove it, or make it a seed"
        );
    }
}

/// A corpus that does not get past the first check is worth nothing.
#[test]
fn seeds_reach_what_they_are_for() {
    let mut sums: BTreeMap<&str, Reached> = BTreeMap::new();
    for Seed { body, name, bytes } in seeds::all() {
        let reached = run(body, name, &bytes);
        if body.starts_with("pdus_to_") {
            assert_eq!(
                (reached.errors, reached.terminations),
                (0, 0),
                "{body}/{name} is valid"
            );
            assert_eq!(reached.ready, 1, "{body}/{name}");
            assert!(reached.completions > 0, "{body}/{name}: {reached:?}");
        }
        add(sums.entry(body).or_default(), reached);
    }
    let names: Vec<&str> = sums.keys().copied().collect();
    let mut bodies: Vec<&str> = BODIES.iter().map(|body| body.name).collect();
    bodies.sort_unstable();
    assert_eq!(names, bodies, "every body has seeds");
    let sum = |name: &str| sums[name];
    assert!(
        sum("pdus_to_controller").transfers >= 8,
        "{:?}",
        sum("pdus_to_controller")
    );
    assert!(sum("pdus_to_host").transfers >= 15, "{:?}", sum("pdus_to_host"));
    for name in ["capsules", "controller_events"] {
        let reached = sum(name);
        assert!(
            reached.completions > 40 && reached.transfers >= 8192 && reached.failures > 3,
            "{name}: {reached:?}"
        );
    }
    let reached = sum("connect_data");
    assert_eq!((reached.transfers, reached.failures), (3, 3), "{reached:?}");
    let reached = sum("host_events");
    assert!(
        reached.transfers >= 8 && reached.errors >= 3 && reached.terminations >= 1,
        "{reached:?}"
    );
    let reached = sum("rdma_controller");
    assert!(
        reached.commands >= 25
            && reached.completions >= 17
            && reached.transfers >= 10
            && reached.failures >= 8
            && reached.errors >= 4,
        "{reached:?}"
    );
    let reached = sum("rdma_host");
    assert!(
        reached.commands >= 20
            && reached.completions >= 7
            && reached.transfers >= 5
            && reached.failures >= 4
            && reached.errors >= 7,
        "{reached:?}"
    );
    let reached = sum("driver");
    assert!(
        reached.ready >= 22
            && reached.commands >= 150
            && reached.completions >= 110
            && reached.transfers >= 50
            && reached.failures >= 5
            && reached.terminations >= 10,
        "{reached:?}"
    );
    let reached = sum("host_answers");
    assert!(reached.transfers >= 7, "{reached:?}");
    assert!(sum("spec").transfers >= 8, "{:?}", sum("spec"));
    let reached = sum("uri_and_config");
    assert!(
        reached.transfers >= 5 && reached.completions >= 3 && reached.failures > 0,
        "{reached:?}"
    );
}

/// Runs one seed that once failed.
fn replay(body: &str, name: &str) -> Reached {
    let seed = seeds::all()
        .into_iter()
        .find(|seed| (seed.body, seed.name) == (body, name))
        .unwrap();
    run(body, name, &seed.bytes)
}

#[test]
fn a_read_keeps_its_digest_when_a_later_write_changes_its_blocks() {
    assert_eq!(replay("controller_events", "read-then-write").transfers, 4 * 512);
}

/// Changes some bytes, as fuzzers do, and now and then joins two inputs.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len().max(1));
        let value = dice.next().to_le_bytes()[0];
        match dice.below(8) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at.min(bytes.len()), value),
            2 if !bytes.is_empty() => {
                bytes.remove(at);
            }
            3 => {
                let from = dice.below(other.len().max(1));
                bytes.truncate(at);
                bytes.extend_from_slice(other.get(from..).unwrap_or(&[]));
            }
            4 => {
                let len = dice.below(64).min(bytes.len() - at.min(bytes.len()));
                let part = bytes.get(at..at + len).unwrap_or(&[]).to_vec();
                bytes.splice(at.min(bytes.len())..at.min(bytes.len()), part);
            }
            5 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (value % 8);
                }
            }
            6 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = [0, 1, 0x7f, 0x80, 0xff][usize::from(value) % 5];
                }
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
        }
    }
    bytes.truncate(16384);
}

#[test]
fn mutations_of_the_seeds_break_nothing() {
    let seeds = seeds::all();
    let share = BUDGET / u32::try_from(BODIES.len()).unwrap();
    for (number, body) in BODIES.iter().enumerate() {
        let own: Vec<&Seed> = seeds.iter().filter(|seed| seed.body == body.name).collect();
        let mut dice = Dice::new(u64::try_from(number).unwrap());
        let end = Instant::now() + share;
        let mut done = 0;
        while done < MUTATIONS && (Instant::now() < end || done < 50) {
            let seed = own[dice.below(own.len())];
            let mut bytes = seed.bytes.clone();
            let other = &own[dice.below(own.len())].bytes;
            mutate(&mut bytes, other, &mut dice);
            run(body.name, &format!("mutation-{done}"), &bytes);
            done += 1;
        }
    }
}

#[test]
fn nothing_at_all_is_an_input_too() {
    for body in BODIES {
        run(body.name, "empty", &[]);
        run(body.name, "zeroes", &[0; 300]);
        run(body.name, "ones", &[0xff; 300]);
    }
}
