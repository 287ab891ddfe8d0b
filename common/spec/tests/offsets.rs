//! Where every field of the large pages lies. The figures of Base 2.0 and NVM Command Set 1.0 give bytes; so does this table.

use core::mem::offset_of;
use homi_spec::identify::{IdentifyController, IdentifyNamespace};
use homi_spec::log::SmartLog;

macro_rules! offsets {
    ($page:ident: $( $field:ident $offset:literal )*) => {
        $( assert_eq!(offset_of!($page, $field), $offset, concat!(stringify!($page), ".", stringify!($field))); )*
    };
}

#[test]
fn identify_controller() {
    offsets! {
        IdentifyController:
        vid 0 sn 4 mn 24 fr 64 rab 72 ieee 73 cmic 76 mdts 77 cntlid 78 ver 80 rtd3r 84 oaes 92 ctratt 96
        rrls 100 cntrltype 111 fguid 112 crdt1 128 nvmsr 253 vwci 254 mec 255 oacs 256 acl_z 258
        aerl_z 259 frmw 260 lpa 261 elpe_z 262 npss_z 263 avscc 264 apsta 265 wctemp 266 cctemp 268
        mtfa 270 hmpre 272 hmmin 276 tnvmcap 280 unvmcap 296 rpmbs 312 edstt 316 dsto 318 fwug 319
        kas 320 hctma 322 mntmt 324 mxtmt 326 sanicap 328 hmminds 332 hmmaxd 336 nsetidmax 338
        endgidmax 340 anatt 342 anacap 343 anagrpmax 344 nanagrpid 348 pels 352 domainid 356 megcap 368
        sqes 512 cqes 513 maxcmd 514 nn 516 oncs 520 fuses 522 fna 524 vwc 525 awun_z 526 awupf_z 528
        icsvscc 530 nwpc 531 acwu_z 532 ocfs 534 sgls 536 mnan 540 maxdna 544 maxcna 560 subnqn 768
        ioccsz 1792 iorcsz 1796 icdoff 1800 fcatt 1802 msdbd 1803 ofcs 1804 dctype 1806 psd 2048 vs 3072
    }
}

#[test]
fn identify_namespace() {
    offsets! {
        IdentifyNamespace:
        nsze 0 ncap 8 nuse 16 nsfeat 24 nlbaf_z 25 flbas 26 mc 27 dpc 28 dps 29 nmic 30 rescap 31 fpi 32
        dlfeat 33 nawun_z 34 nawupf_z 36 nacwu_z 38 nabsn_z 40 nabo 42 nabspf_z 44 noiob 46 nvmcap 48
        npwg_z 64 npwa_z 66 npdg_z 68 npda_z 70 nows_z 72 mssrl 74 mcl 76 msrc_z 80 anagrpid 92 nsattr 99
        nvmsetid 100 endgid 102 nguid 104 eui64 120 lbaf 128 vs 384
    }
}

#[test]
fn smart_log() {
    offsets! {
        SmartLog:
        temperature 1 data_units_read 32 host_reads 64 error_entries 176 warning_temperature_time 192
        temperature_sensors 200
    }
}
