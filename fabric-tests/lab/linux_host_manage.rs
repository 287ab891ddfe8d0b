//! Linux's host against our target: what administrators do with `nvme`, and what they are told.

use std::thread;
use std::time::{Duration, Instant};

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, HostTarget, Kernels, Lab, Peer, Requirement, Test, Vm};
use serde_json::Value;

const NQN: &str = "nqn.2026-01.org.example:manage";
const MORE: &str = "nqn.2026-01.org.example:manage.more";
const OTHER: &str = "nqn.2026-01.org.example:manage.elsewhere";
const HIDDEN: &str = "nqn.2026-01.org.example:manage.hidden";
const STRANGER: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-0000000000ff";

const OF_LINUX: Test = Test {
    needs: &[Requirement::LinuxHost],
    peer: Peer::LinuxHost,
    limit: Duration::from_secs(150),
    ..Test::DEFAULT
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "discovery_and_connect_all",
        feature: "discover, referrals, connect-all, disconnect",
        run: discovery_and_connect_all,
        ..OF_LINUX
    },
    Test {
        name: "identify",
        feature: "list, id-ctrl, id-ns, ns-descs, read-only namespaces",
        run: identify,
        ..OF_LINUX
    },
    Test {
        name: "logs_and_features",
        feature: "smart-log, error-log, effects-log, get-feature, set-feature",
        run: logs_and_features,
        ..OF_LINUX
    },
    Test {
        name: "queues_and_keep_alive_as_asked",
        feature: "several I/O queues (default, read, poll), queue size, keep-alive timeout, no SQ flow control",
        run: queues_and_keep_alive,
        ..OF_LINUX
    },
    Test {
        name: "digests_are_agreed_on",
        feature: "header and data digests",
        run: digests_are_agreed_on,
        kernels: Kernels::Default,
        ..OF_LINUX
    },
    Test {
        name: "refused_hosts_are_told",
        feature: "allow list",
        run: refused_hosts_are_told,
        ..OF_LINUX
    },
    Test {
        name: "reset_and_rescan",
        feature: "reset, ns-rescan",
        run: reset_and_rescan,
        ..OF_LINUX
    },
];

fn listener() -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:{{port}}\"\nadvertise = \"{}\"\n",
        HostTarget::GUESTS_SEE
    )
}

/// A subsystem with a namespace in memory, for any host.
fn subsystem(nqn: &str) -> String {
    format!(
        "[[subsystem]]\nnqn = \"{nqn}\"\nallow_any_host = true\n[[subsystem.namespace]]\nnsid = 1\nram = \"16M\"\n"
    )
}

/// A number, which some versions of `nvme` write as text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// The number of the first line with this name in what `nvme get-feature` and the like print: `…value:0x0000001f`.
fn feature(guest: &Vm, controller: &str, options: &str) -> Result<u64, Failure> {
    let text = guest
        .sh(&format!("nvme get-feature /dev/{controller} {options}"))?
        .stdout;
    let digits = text
        .lines()
        .next()
        .and_then(|line| line.rsplit_once(':'))
        .map(|(_, value)| value.trim().trim_start_matches("0x"));
    let value = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    value.ok_or_else(|| Failure::new(format!("get-feature {options} prints no value: {text}")))
}

fn attribute(guest: &Vm, controller: &str, name: &str) -> Result<String, Failure> {
    let text = guest
        .sh(&format!("cat /sys/class/nvme/{controller}/{name}"))?
        .stdout;
    Ok(text.trim().to_owned())
}

/// Waits until the kernel of the guest has written a line with this part.
fn logged(guest: &Vm, part: &str) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        let log = guest.kernel_log()?;
        if log.contains(part) {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(20) {
            let of_nvme: Vec<&str> = log.lines().filter(|line| line.contains("nvme")).collect();
            return Err(Failure::new(format!(
                "the kernel does not say {part:?}: {}",
                of_nvme.join(" / ")
            )));
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Names of the subsystems that a discovery finds, with what each record must say checked, and the generation of the log.
fn discover(guest: &Vm, port: u16) -> Result<(Vec<(String, String)>, u64), Failure> {
    let log = guest
        .sh(&format!(
            "modprobe nvme-tcp; nvme discover -t tcp -a 10.0.2.2 -s {port} -o json"
        ))?
        .json()?;
    let mut found = Vec::new();
    for record in log["records"].as_array().into_iter().flatten() {
        let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        ensure!(
            text("trtype") == "tcp" && text("adrfam") == "ipv4" && text("traddr") == "10.0.2.2",
            "a record leads nowhere: {record}"
        );
        ensure!(
            text("sectype") == "none" && text("treq").starts_with("not specified"),
            "a record asks for security: {record}"
        );
        found.push((text("subnqn"), text("trsvcid")));
    }
    found.sort();
    let generation = number(&log["genctr"]).ok_or_else(|| Failure::new(format!("no generation: {log}")))?;
    Ok((found, generation))
}

fn discovery_and_connect_all(lab: &Lab) -> Result<(), Failure> {
    let elsewhere = lab.target(&(listener() + &subsystem(OTHER)))?;
    let referral = format!(
        "[[discovery.referral]]\naddress = \"10.0.2.2:{}\"\n",
        elsewhere.port()
    );
    let hidden = format!("[[subsystem]]\nnqn = \"{HIDDEN}\"\nallow = [\"{STRANGER}\"]\n");
    let first = listener() + &referral + &subsystem(NQN) + &hidden;
    let target = lab.target(&first)?;
    let guest = lab.guest(0)?;
    let expect = |names: &[(&str, u16)]| -> Vec<(String, String)> {
        let mut list: Vec<_> = names
            .iter()
            .map(|(nqn, port)| ((*nqn).to_owned(), port.to_string()))
            .collect();
        list.sort();
        list
    };
    let discovery = "nqn.2014-08.org.nvmexpress.discovery";
    let (port, other) = (target.port(), elsewhere.port());

    let (found, generation) = discover(guest, port)?;
    ensure!(
        found == expect(&[(NQN, port), (discovery, other)]),
        "the discovery log has {found:?}"
    );
    target.reload(&(first + &subsystem(MORE)))?;
    let (found, later) = discover(guest, port)?;
    ensure!(
        found == expect(&[(NQN, port), (MORE, port), (discovery, other)]),
        "after the reload the discovery log has {found:?}"
    );
    ensure!(
        later > generation,
        "the generation of the log is {later} after {generation}, though it changed"
    );

    // The second time finds everything connected already.
    let connect = format!("nvme connect-all -t tcp -a 10.0.2.2 -s {port} -i 1");
    guest.sh(&connect)?;
    guest.try_sh(&connect)?;
    let count = |nqn: &str| -> Result<usize, Failure> {
        Ok(guest.sh(&format!("controllers {nqn}"))?.stdout.lines().count())
    };
    for (nqn, wanted) in [(NQN, 1), (MORE, 1), (OTHER, 1), (HIDDEN, 0)] {
        let found = count(nqn)?;
        ensure!(
            found == wanted,
            "{found} controllers of {nqn} instead of {wanted}"
        );
        if wanted == 1 {
            guest.namespace(nqn, 1)?;
        }
    }
    let said = guest.sh(&format!("nvme disconnect -n {NQN}"))?.stdout;
    ensure!(
        said.contains("disconnected 1 controller"),
        "the disconnect says {said:?}"
    );
    ensure!(
        count(NQN)? == 0 && count(MORE)? == 1,
        "the disconnect of {NQN} took the wrong one"
    );
    guest.sh("nvme disconnect-all")?;
    for nqn in [NQN, MORE, OTHER] {
        ensure!(
            count(nqn)? == 0,
            "{nqn} is still connected after the disconnect of all"
        );
    }
    target.stop()?;
    elsewhere.stop()
}

fn identify(lab: &Lab) -> Result<(), Failure> {
    const UUID: &str = "a5f0c3de-1111-4222-8333-444455556666";
    let file = lab.scratch().join("backing");
    let target = lab.target(&format!(
        r#"{listener}
[[subsystem]]
nqn = "{NQN}"
allow_any_host = true
serial = "SN-0042"
model = "Model of the Lab"
[[subsystem.namespace]]
nsid = 1
ram = "8M"
block_size = 512
uuid = "{UUID}"
[[subsystem.namespace]]
nsid = 3
path = "{file}"
create = "24M"
block_size = 4096
[[subsystem.namespace]]
nsid = 9
ram = "1M"
block_size = 4096
read_only = true
"#,
        listener = listener(),
        file = file.display(),
    ))?;
    let guest = lab.guest(0)?;
    let controller = guest.connect("10.0.2.2", target.port(), NQN, "")?;
    let disks = [
        guest.namespace(NQN, 1)?,
        guest.namespace(NQN, 3)?,
        guest.namespace(NQN, 9)?,
    ];

    let page = guest
        .sh(&format!("nvme id-ctrl /dev/{controller} -o json"))?
        .json()?;
    let text = |key: &str| page[key].as_str().unwrap_or_default().trim().to_owned();
    ensure!(
        text("sn") == "SN-0042" && text("mn") == "Model of the Lab" && text("subnqn") == NQN,
        "the controller says who it is not: {page}"
    );
    let id = attribute(guest, &controller, "cntlid")?;
    // 1 MiB transfers; commands of 64 and completions of 16 bytes; 16 KiB in a capsule; a cache that can be flushed.
    for (field, value) in [
        ("mdts", 8),
        ("ver", 0x2_0000),
        ("cntrltype", 1),
        ("sqes", 0x66),
        ("cqes", 0x44),
        ("ioccsz", (64 + (16 << 10)) / 16),
        ("iorcsz", 1),
        ("icdoff", 0),
        ("vwc", 7),
        ("oncs", 0x9d),
        ("oaes", 0x100),
        ("maxcmd", 1024),
        ("cntlid", id.parse()?),
    ] {
        let found = number(&page[field]);
        ensure!(
            found == Some(value),
            "{field} of the controller is {found:?} instead of {value:#x}"
        );
    }

    let list = guest.sh(&format!("nvme list-ns /dev/{controller}"))?.stdout;
    let nsids: Vec<&str> = list
        .lines()
        .filter_map(|line| Some(line.rsplit_once(':')?.1.trim()))
        .collect();
    ensure!(nsids == ["0x1", "0x3", "0x9"], "the namespaces are {list:?}");
    for (disk, blocks, shift, attributes) in [
        (&disks[0], 16 << 10, 9, 0),
        (&disks[1], 6 << 10, 12, 0),
        (&disks[2], 256, 12, 1),
    ] {
        let page = guest.sh(&format!("nvme id-ns {disk} -o json"))?.json()?;
        let format = &page["lbafs"][0];
        ensure!(
            number(&page["nsze"]) == Some(blocks) && number(&page["nvmcap"]) == Some(blocks << shift),
            "{disk} has another size: {page}"
        );
        ensure!(
            number(&format["ds"]) == Some(shift) && number(&format["ms"]) == Some(0),
            "{disk} has another format: {page}"
        );
        ensure!(
            number(&page["nsattr"]) == Some(attributes),
            "{disk} has other attributes: {page}"
        );
    }

    // What Linux makes of the identifiers.
    let descriptors = guest
        .sh(&format!("nvme ns-descs /dev/{controller} -n 1 -o json"))?
        .json()?;
    let list = descriptors["ns-descs"].as_array().cloned().unwrap_or_default();
    let of_kind = |kind: &str| {
        let entry = list.iter().find(|entry| entry["type"] == kind);
        entry
            .and_then(|entry| entry[kind].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    ensure!(
        of_kind("uuid") == UUID,
        "the descriptors have another UUID: {descriptors}"
    );
    for (kind, digits) in [("eui64", 16), ("nguid", 32)] {
        ensure!(
            of_kind(kind).len() == digits,
            "the descriptors have no {kind}: {descriptors}"
        );
    }
    let seen = guest.sh(&format!(
        "cd /sys/block/{}; cat uuid nguid ro queue/logical_block_size; cat /sys/block/{}/ro",
        disks[0].trim_start_matches("/dev/"),
        disks[2].trim_start_matches("/dev/"),
    ))?;
    let seen: Vec<&str> = seen.stdout.lines().collect();
    let nguid = seen.get(1).map(|text| text.replace('-', ""));
    ensure!(
        seen.first() == Some(&UUID)
            && nguid.as_ref() == Some(&of_kind("nguid"))
            && seen.get(2..) == Some(&["0", "512", "1"]),
        "the kernel has taken {seen:?} out of it"
    );
    let said = guest
        .sh_fails(&format!(
            "dd if=/dev/zero of={} bs=4k count=1 oflag=direct",
            disks[2]
        ))?
        .stderr;
    ensure!(
        said.contains("not permitted") || said.contains("Read-only"),
        "the write to a read-only namespace fails otherwise: {said}"
    );

    let list = guest.sh("nvme list -v -o json")?.json()?.to_string();
    let lacking: Vec<&str> = [
        "\"SN-0042\"",
        "\"Model of the Lab\"",
        NQN,
        "\"tcp\"",
        "\"PhysicalSize\":8388608",
        "\"PhysicalSize\":25165824",
    ]
    .into_iter()
    .filter(|part| !list.contains(part))
    .collect();
    ensure!(lacking.is_empty(), "the list lacks {lacking:?}: {list}");
    target.stop()
}

fn logs_and_features(lab: &Lab) -> Result<(), Failure> {
    let target = lab.target(&(listener() + &subsystem(NQN)))?;
    let guest = lab.guest(0)?;
    let controller = guest.connect("10.0.2.2", target.port(), NQN, "-k 7 -i 2")?;
    let disk = guest.namespace(NQN, 1)?;
    let smart = || {
        guest
            .sh(&format!("nvme smart-log /dev/{controller} -o json"))?
            .json()
    };
    let before = smart()?;
    guest.sh(&format!(
        "dd if=/dev/zero of={disk} bs=128k count=64 oflag=direct status=none
         dd if={disk} of=/dev/null bs=64k count=64 iflag=direct status=none"
    ))?;
    let after = smart()?;
    let grown = |field: &str| Some(number(&after[field])?.saturating_sub(number(&before[field])?));
    ensure!(
        grown("host_write_commands") == Some(64) && grown("host_read_commands") == Some(64),
        "64 writes and 64 reads are counted as {:?} and {:?}",
        grown("host_write_commands"),
        grown("host_read_commands")
    );
    // 8 MiB and 4 MiB in thousands of 512 bytes, rounded.
    ensure!(
        matches!(grown("data_units_written"), Some(16 | 17))
            && matches!(grown("data_units_read"), Some(8 | 9)),
        "8 MiB written and 4 MiB read are counted as {:?} and {:?} data units",
        grown("data_units_written"),
        grown("data_units_read")
    );
    ensure!(
        number(&after["critical_warning"]) == Some(0) && number(&after["num_err_log_entries"]) == Some(0),
        "the log speaks of errors: {after}"
    );

    let said = guest
        .sh_fails(&format!(
            "nvme read {disk} --start-block=4096 --block-count=0 --data-size=4096 >out"
        ))?
        .stderr;
    ensure!(
        said.contains("LBA Out of Range") || said.contains("logical block range"),
        "a read past the end fails otherwise: {said}"
    );
    guest.sh_fails(&format!("nvme get-feature /dev/{controller} -f 0xff"))?;
    let log = guest
        .sh(&format!("nvme error-log /dev/{controller} -e 3 -o json"))?
        .json()?;
    // The newest is first: a feature that does not exist on the admin queue, then a read of block 4096 on another.
    let entry = |index: usize| {
        let entry = &log["errors"][index];
        let field = |name: &str| number(&entry[name]);
        (
            field("error_count"),
            field("sqid").map(|queue| queue != 0),
            field("status_field").map(|status| status & 0x7ff),
            field("lba"),
        )
    };
    ensure!(
        entry(0) == (Some(2), Some(false), Some(2), Some(0))
            && entry(1) == (Some(1), Some(true), Some(0x80), Some(4096))
            && entry(2).0 == Some(0),
        "the error log has {log}"
    );

    // Without its command set named, this version of the tool asks for a register of the PCIe bus and prints nothing.
    let log = guest
        .sh(&format!("nvme effects-log /dev/{controller} -c 0 -o json"))?
        .json()?;
    let log = if log.is_array() { log[0].clone() } else { log };
    let command = |set: &str, part: &str| {
        let entries = log[set].as_object()?;
        number(entries.iter().find(|(name, _)| name.contains(part))?.1)
    };
    for (set, name, supported, changes) in [
        ("admin_cmd_set", "Identify", true, false),
        ("admin_cmd_set", "Keep Alive", true, false),
        ("admin_cmd_set", "Format NVM", false, false),
        ("io_cmd_set", "(Write)", true, true),
        ("io_cmd_set", "(Read)", true, false),
        ("io_cmd_set", "Write Zeroes", true, true),
        ("io_cmd_set", "Dataset Management", true, true),
        ("io_cmd_set", "Reservation Register", false, false),
    ] {
        let effects = command(set, name).unwrap_or(0);
        ensure!(
            (effects & 1 != 0, effects & 2 != 0) == (supported, changes),
            "the effects log says {effects:#x} of {name}: {log}"
        );
    }

    // Arbitration, power, temperature threshold, error recovery, queues as asked for, events, keep-alive timeout.
    for (fid, value) in [
        (1, 0),
        (2, 0),
        (4, 0xffff),
        (5, 0),
        (7, 0x0001_0001),
        (0xb, 0x100),
        (0xf, 7000),
    ] {
        let found = feature(guest, &controller, &format!("-f {fid}"))?;
        ensure!(
            found == value,
            "feature {fid:#x} is {found:#x} instead of {value:#x}"
        );
    }
    let said = guest
        .sh_fails(&format!("nvme get-feature /dev/{controller} -f 8"))?
        .stderr;
    ensure!(
        said.contains("Invalid Field"),
        "the coalescing of interrupts, which no fabric has, is refused otherwise: {said}"
    );
    guest.sh(&format!("nvme set-feature /dev/{controller} -f 4 -v 0x154"))?;
    let found = feature(guest, &controller, "-f 4")?;
    ensure!(found == 0x154, "a feature that was set to 0x154 is {found:#x}");
    let found = feature(guest, &controller, "-f 4 -s 1")?;
    ensure!(
        found == 0xffff,
        "the default of a feature that was set is {found:#x}"
    );
    let identifier = guest
        .sh(&format!(
            "nvme get-feature /dev/{controller} -f 0x81 -c 1 -l 16 -b | od -An -v -tx1 | tr -d ' \\n'"
        ))?
        .stdout;
    ensure!(
        identifier == guest.host_id().replace('-', ""),
        "the host identifier comes back as {identifier} instead of {}",
        guest.host_id()
    );
    target.stop()
}

fn queues_and_keep_alive(lab: &Lab) -> Result<(), Failure> {
    let target = lab.target(&(listener() + "[limits]\nio_queues = 6\n" + &subsystem(NQN)))?;
    let guest = lab.guest(0)?;
    // Two processors: Linux makes two queues of each kind.
    let controller = guest.connect(
        "10.0.2.2",
        target.port(),
        NQN,
        "--nr-io-queues=2 --nr-write-queues=2 --nr-poll-queues=2 --queue-size=33 --keep-alive-tmo=11",
    )?;
    let disk = guest.namespace(NQN, 1)?;
    for (name, value) in [
        ("state", "live"),
        ("queue_count", "7"),
        ("sqsize", "32"),
        ("kato", "11"),
    ] {
        let found = attribute(guest, &controller, name)?;
        ensure!(found == value, "{name} is {found} instead of {value}");
    }
    logged(guest, "creating 6 I/O queues")?;
    logged(guest, "mapped 2/2/2 default/read/poll queues")?;
    for (fid, value) in [(7, 0x0005_0005), (0xf, 11_000)] {
        let found = feature(guest, &controller, &format!("-f {fid}"))?;
        ensure!(
            found == value,
            "feature {fid:#x} is {found:#x} instead of {value:#x}"
        );
    }
    // Every kind of queue carries something, from both processors.
    guest.sh(&format!(
        "fio --filename={disk} --direct=1 --size=1M --bs=4k --verify=crc32c --verify_fatal=1 --cpus_allowed=0-1 \
         --cpus_allowed_policy=split --numjobs=2 --offset_increment=1M --ioengine=pvsync2 --hipri \
         --rw=randwrite --name=polled --output=polled
         fio --filename={disk} --direct=1 --size=1M --bs=4k --verify=crc32c --verify_fatal=1 --cpus_allowed=0-1 \
         --cpus_allowed_policy=split --numjobs=2 --offset_increment=1M --ioengine=libaio --iodepth=16 \
         --rw=randwrite --name=waited --output=waited"
    ))?;
    guest.sh(&format!("nvme disconnect -d {controller}"))?;

    // More than the target gives: Linux takes what there is.
    target.reload(&(listener() + "[limits]\nio_queues = 1\n" + &subsystem(NQN)))?;
    let controller = guest.connect(
        "10.0.2.2",
        target.port(),
        NQN,
        "--nr-io-queues=2 --disable-sqflow",
    )?;
    let found = attribute(guest, &controller, "queue_count")?;
    ensure!(
        found == "2",
        "with one I/O queue to be had there are {found} queues"
    );
    let disk = guest.namespace(NQN, 1)?;
    guest.sh(&format!(
        "head -c 4M /dev/urandom >a
         dd if=a of={disk} bs=64k oflag=direct status=none
         dd if={disk} of=b bs=64k count=64 iflag=direct status=none
         cmp a b
         nvme disconnect -d {controller}"
    ))?;
    target.stop()
}

fn digests_are_agreed_on(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let config = |node: &str| listener() + node + &subsystem(NQN);
    let target = lab.target(&config(""))?;
    for (options, blocks) in [("-g", "4k"), ("-G", "48k"), ("-g -G", "512k")] {
        let controller = guest.connect("10.0.2.2", target.port(), NQN, options)?;
        let disk = guest.namespace(NQN, 1)?;
        guest.sh(&format!(
            "head -c 3M /dev/urandom >a
             dd if=a of={disk} bs={blocks} oflag=direct status=none
             dd if={disk} bs={blocks} count=3M iflag=direct,count_bytes status=none of=b
             cmp a b
             nvme disconnect -d {controller}"
        ))?;
    }
    target.stop()?;
    // Linux refuses a target that does not agree to a digest which it asked for, so those above were there.
    for (key, option, word) in [("header_digest", "-g", "header"), ("data_digest", "-G", "data")] {
        let target = lab.target(&config(&format!("[node]\n{key} = false\n")))?;
        guest.sh_fails(&format!(
            "nvme connect -t tcp -a 10.0.2.2 -s {} -n {NQN} {option}",
            target.port()
        ))?;
        logged(
            guest,
            &format!("{word} digest mismatch host: enabled ctrl: disabled"),
        )?;
        let controller = guest.connect("10.0.2.2", target.port(), NQN, "")?;
        guest.sh(&format!("nvme disconnect -d {controller}"))?;
        target.stop()?;
    }
    Ok(())
}

fn refused_hosts_are_told(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let host = guest.host_nqn();
    let config = |allow: &str| {
        listener()
            + &format!(
                "[[subsystem]]\nnqn = \"{NQN}\"\nallow = [\"{allow}\"]\n[[subsystem.namespace]]\nnsid = 1\nram = \"8M\"\n"
            )
    };
    let target = lab.target(&config(STRANGER))?;
    let connect = format!(
        "modprobe nvme-tcp; nvme connect -t tcp -a 10.0.2.2 -s {} -n",
        target.port()
    );
    guest.sh_fails(&format!("{connect} {NQN}"))?;
    logged(
        guest,
        &format!("Connect for subsystem {NQN} is not allowed, hostnqn: {host}"),
    )?;
    ensure!(
        target.log().contains("connect refused"),
        "the target does not say that it refused a host: {}",
        target.log()
    );
    guest.sh_fails(&format!("{connect} {MORE}"))?;
    logged(
        guest,
        &format!("Connect Invalid Data Parameter, subsysnqn \"{MORE}\""),
    )?;
    let (found, _) = discover(guest, target.port())?;
    ensure!(
        found.is_empty(),
        "a host that may not connect discovers {found:?}"
    );
    // The one that may.
    guest.sh(&format!(
        "{connect} {NQN} --hostnqn={STRANGER} --hostid=00000000-0000-4000-8000-0000000000ff
         namespace {NQN} 1
         nvme disconnect -n {NQN}"
    ))?;

    // Allowed, then not any more: what it has is taken away, and the next attempt is refused for good.
    target.reload(&config(&host))?;
    guest.sh(&format!("{connect} {NQN} --reconnect-delay=1"))?;
    guest.namespace(NQN, 1)?;
    target.reload(&config(STRANGER))?;
    guest.sh(&format!(
        "gone() {{ [ -z \"$(controllers {NQN})\" ]; }}; until_true 40 gone"
    ))?;
    target.stop()
}

fn reset_and_rescan(lab: &Lab) -> Result<(), Failure> {
    let target = lab.target(&(listener() + &subsystem(NQN)))?;
    let guest = lab.guest(0)?;
    let controller = guest.connect("10.0.2.2", target.port(), NQN, "")?;
    let disk = guest.namespace(NQN, 1)?;
    guest.sh(&format!(
        "head -c 4M /dev/urandom >a; dd if=a of={disk} bs=256k oflag=direct status=none"
    ))?;
    let id = attribute(guest, &controller, "cntlid")?;
    for _ in 0..3 {
        guest.sh(&format!(
            "nvme reset /dev/{controller}; until_true 20 grep -x live /sys/class/nvme/{controller}/state"
        ))?;
    }
    let log = guest.kernel_log()?;
    let resets = log
        .lines()
        .filter(|line| line.contains("resetting controller"))
        .count();
    ensure!(
        resets == 3 && log.matches("creating 2 I/O queues").count() == 4,
        "three resets are {resets} in the kernel's log: {log}"
    );
    let later = attribute(guest, &controller, "cntlid")?;
    ensure!(
        !later.is_empty() && later != "0",
        "after resets the controller {id} is {later}"
    );
    guest.sh(&format!(
        "nvme ns-rescan /dev/{controller}
         [ \"$(namespace {NQN} 1)\" = {disk} ]
         dd if={disk} of=b bs=1M count=4 iflag=direct status=none; cmp a b"
    ))?;
    let said = guest.sh(&format!("nvme disconnect -d {controller}"))?;
    ensure!(
        !said.stdout.contains("Failed"),
        "the disconnect says {:?}",
        said.stdout
    );
    let left = guest.sh(&format!("controllers {NQN}"))?.stdout;
    ensure!(left.is_empty(), "still connected after the disconnect: {left}");
    target.stop()
}
