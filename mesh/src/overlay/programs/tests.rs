//! The programs as the kernel runs them, beside what they are to do.

use proptest::prelude::*;

use super::path::key;
use super::*;

/// `TC_ACT_UNSPEC` and `TC_ACT_REDIRECT`.
const NEXT: i32 = -1;
const SENT_ON: i32 = 7;
const MTU: u32 = 1450;
const OWN_MAC: Mac = Mac([0x02, 0x50, 0x4c, 0, 0, 7]);
const OTHER_MAC: Mac = Mac([0x0a, 0x58, 1, 2, 3, 4]);

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn shape() -> Shape {
    let range = |whole, own| Range { whole: prefix(whole), own: prefix(own) };
    let ranges =
        vec![range("10.42.0.0/16", "10.42.7.0/26"), range("fd42:0:0:4000::/50", "fd42:0:0:4007:8000::/66")];
    Shape { tunnel: 1, mac: OWN_MAC, ranges, mtu: MTU }
}

/// What is known: another node's subnets, and a container here.
const PEERS: [&str; 2] = ["10.42.9.64/26", "fd42:0:0:4009:4000::/66"];
const CONTAINERS: [&str; 2] = ["10.42.7.5", "fd42:0:0:4007:8000::5"];

/// As the network's programs are; `None`, and said, where this user or kernel can have none.
fn installed() -> Option<Installed> {
    let installed = Installed::load(shape()).and_then(|mut installed| {
        let peers = PEERS.map(|subnet| (prefix(subnet), OTHER_MAC)).into();
        let addresses = CONTAINERS.map(|address| address.parse().unwrap()).into();
        let containers = [(1, Container { mac: OTHER_MAC, addresses })].into();
        installed.ensure(&Wanted { shape: shape(), peers, containers })?;
        Ok(installed)
    });
    match installed {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            println!("skipped: programs cannot be loaded by this user: {error}");
            None
        }
        installed => Some(installed.unwrap()),
    }
}

/// What becomes of a frame: what it is after it was sent on, or nothing.
fn expected(frame: &[u8], is_outward: bool) -> Option<Vec<u8>> {
    let packet = frame.get(14..)?;
    let v4 = match frame[12..14] {
        [0x08, 0x00] => true,
        [0x86, 0xdd] => false,
        _ => return None,
    };
    let header = if v4 { 20 } else { 40 };
    if packet.len() < header || !is_outward && frame[..6] != [0; 6] {
        return None;
    }
    let address = |at: usize| -> IpAddr {
        let bytes = |length| &packet[at..at + length];
        if v4 {
            <[u8; 4]>::try_from(bytes(4)).unwrap().into()
        } else {
            <[u8; 16]>::try_from(bytes(16)).unwrap().into()
        }
    };
    let (protocol, life, from, to) =
        if v4 { (packet[9], 8, address(12), address(16)) } else { (packet[6], 7, address(8), address(24)) };
    let is_plain =
        if v4 { packet[0] == 0x45 } else { packet[0] >> 4 == 6 && [6, 17, 58].contains(&protocol) };
    let is_rest = v4 && (packet[6] & 0x1f, packet[7]) != (0, 0);
    let is_tcp = protocol == 6 && !is_rest;
    if !is_plain
        || packet[life] < 2
        || is_tcp && packet.get(header + 13).is_none_or(|flags| flags & 2 != 0)
        || !is_outward && !is_tcp && packet.len() > MTU as usize
    {
        return None;
    }
    let shape = shape();
    let range = shape.ranges.iter().find(|range| range.own.is_ipv4() == v4)?;
    let is_for = |known: &str| prefix(known).contains(to);
    let is_known = if is_outward {
        range.own.contains(from) && PEERS.into_iter().any(is_for)
    } else {
        range.whole.contains(from) && CONTAINERS.iter().any(|known| known.parse() == Ok(to))
    };
    let mut after = frame.to_vec();
    after[..6].copy_from_slice(&OTHER_MAC.0);
    after[6..12].copy_from_slice(&OWN_MAC.0);
    after[14 + life] -= 1;
    if v4 {
        let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x0100;
        // RFC 1624: what is carried over is added at the other end, and what is all ones is zero.
        let sum = u16::try_from((sum + u32::from(sum >= 0xffff)) & 0xffff).unwrap();
        after[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    is_known.then_some(after)
}

#[track_caller]
fn check(installed: &Installed, frame: &[u8]) -> [bool; 2] {
    [true, false].map(|is_outward| {
        let program = if is_outward { &installed.outward } else { &installed.inward };
        let expected = expected(frame, is_outward);
        let Ok((decided, after)) = program.loaded.run(frame) else {
            assert!(frame.len() < 14 + 40 && expected.is_none(), "the kernel does not try it: {frame:02x?}");
            return false;
        };
        assert_eq!(
            decided,
            if expected.is_some() { SENT_ON } else { NEXT },
            "outward: {is_outward}, {frame:02x?}"
        );
        assert_eq!(after, expected.clone().unwrap_or_else(|| frame.to_vec()), "outward: {is_outward}");
        expected.is_some()
    })
}

/// A packet with its checksum.
fn frame((from, to): (&str, &str), protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (from.parse::<IpAddr>().unwrap(), to.parse::<IpAddr>().unwrap());
    let length = u16::try_from(payload.len()).unwrap();
    let mut frame = vec![0; 12];
    let tail = |address: IpAddr, from: usize| -> Vec<u8> { key(address)[from..].to_vec() };
    if from.is_ipv4() {
        let [a, b] = (length + 20).to_be_bytes();
        let mut header = vec![0x45, 0, a, b, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        header.extend([tail(from, 12), tail(to, 12)].concat());
        let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend([0x08, 0x00]);
        frame.extend(header);
    } else {
        let [a, b] = length.to_be_bytes();
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, a, b, protocol, 64]);
        frame.extend([tail(from, 0), tail(to, 0)].concat());
    }
    frame.extend(payload);
    frame
}

const OUTWARD: [(&str, &str); 2] =
    [("10.42.7.5", "10.42.9.70"), ("fd42:0:0:4007:8000::5", "fd42:0:0:4009:4000::7")];
const INWARD: [(&str, &str); 2] =
    [("10.42.9.70", "10.42.7.5"), ("fd42:0:0:4009:4000::7", "fd42:0:0:4007:8000::5")];
const TCP_ACK: [u8; 20] = [0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0, 9, 0, 0, 0, 0];

#[test]
fn packets_between_containers_are_sent_on_and_beginnings_of_connections_are_not() {
    let Some(installed) = installed() else { return };
    let mut syn = TCP_ACK;
    syn[13] = 0x02;
    for (ways, sent_on) in [(OUTWARD, [true, false]), (INWARD, [false, true])] {
        for way in ways {
            for (protocol, payload) in
                [(6, &TCP_ACK[..]), (17, &[0; 8]), (if way.0.contains(':') { 58 } else { 1 }, &[0; 8])]
            {
                assert_eq!(check(&installed, &frame(way, protocol, payload)), sent_on, "{way:?} {protocol}");
            }
            for (protocol, payload) in [(6, &syn[..]), (6, &TCP_ACK[..12])] {
                assert_eq!(check(&installed, &frame(way, protocol, payload)), [false; 2], "{way:?}");
            }
        }
    }
}

#[test]
fn what_is_no_containers_or_not_plain_is_left_to_others() {
    let Some(installed) = installed() else { return };
    for way in [
        ("10.42.7.5", "10.42.8.70"),
        ("10.42.7.65", "10.42.9.70"),
        ("10.42.7.5", "10.43.9.70"),
        ("10.42.9.70", "10.42.7.6"),
        ("10.41.9.70", "10.42.7.5"),
        ("10.42.7.5", "224.0.0.1"),
        ("fd42:0:0:4007:8000::5", "fd42:0:0:4009::7"),
        ("fd42:0:0:8009:4000::7", "fd42:0:0:4007:8000::5"),
        ("fe80::1", "ff02::1"),
    ] {
        assert_eq!(check(&installed, &frame(way, 17, &[0; 8])), [false; 2], "{way:?}");
    }
    let plain = frame(OUTWARD[0], 17, &[0; 8]);
    for (at, byte) in [(22, 1), (22, 0), (14, 0x46), (13, 0x06)] {
        let mut other = plain.clone();
        other[at] = byte;
        assert_eq!(check(&installed, &other), [false; 2], "{at}");
    }
}

#[test]
fn fragments_are_sent_on_whatever_looks_like_flags_in_them() {
    let Some(installed) = installed() else { return };
    let mut fragment = frame(OUTWARD[0], 6, &[0xff; 40]);
    assert_eq!(check(&installed, &fragment), [false; 2]);
    fragment[21] = 0x20;
    assert_eq!(check(&installed, &fragment), [true, false]);
}

#[test]
fn what_arrives_and_is_too_large_is_left_to_whoever_tells_its_sender() {
    let Some(installed) = installed() else { return };
    for (payload, passes) in [(1430, true), (1431, false)] {
        assert_eq!(check(&installed, &frame(INWARD[0], 17, &vec![0; payload])), [false, passes]);
        assert_eq!(check(&installed, &frame(INWARD[1], 17, &vec![0; payload - 20])), [false, passes]);
        // Segments of TCP may have been put together.
        assert_eq!(
            check(&installed, &frame(INWARD[0], 6, &[&TCP_ACK[..], &vec![0; payload]].concat())),
            [false, true]
        );
        assert_eq!(check(&installed, &frame(OUTWARD[0], 17, &vec![0; payload])), [true, false]);
    }
}

#[test]
fn what_is_forgotten_is_left_to_others() {
    let Some(installed) = installed() else { return };
    let mut programs = Programs { at: [(1, 1)].into(), ..Programs::default() };
    let vni = Vni::new(77).unwrap();
    programs.of.insert(vni, installed);
    let sent_on = |programs: &Programs, frame: &[u8], is_outward: bool| {
        let installed = &programs.of[&vni];
        let program = if is_outward { &installed.outward } else { &installed.inward };
        program.loaded.run(frame).unwrap().0 == SENT_ON
    };
    let (out, back) = (frame(OUTWARD[0], 17, &[0; 8]), frame(INWARD[0], 17, &[0; 8]));
    assert!(sent_on(&programs, &out, true) && sent_on(&programs, &back, false));
    programs.change_peers(vni, &[(prefix(PEERS[0]), None)].into()).unwrap();
    assert!(!sent_on(&programs, &out, true));
    programs.change_peers(vni, &[(prefix(PEERS[0]), Some(OTHER_MAC))].into()).unwrap();
    assert!(sent_on(&programs, &out, true));
    programs.forget(2).unwrap();
    assert!(sent_on(&programs, &back, false));
    programs.forget(1).unwrap();
    assert!(!sent_on(&programs, &back, false));
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let ways: Vec<_> = OUTWARD.into_iter().chain(INWARD).collect();
    let plain =
        (proptest::sample::select(ways), proptest::sample::select(vec![6, 17, 1, 58, 44, 0]), 0..80_usize);
    let plain = plain.prop_map(|(way, protocol, length)| frame(way, protocol, &TCP_ACK.repeat(4)[..length]));
    let changes = proptest::collection::vec((12..75_usize, any::<u8>()), 0..3);
    (plain, changes, 15..140_usize, any::<bool>()).prop_map(|(mut frame, changes, length, is_cut)| {
        for (at, byte) in changes {
            if let Some(changed) = frame.get_mut(at) {
                *changed = byte;
            }
        }
        if is_cut {
            frame.truncate(length);
        }
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn whatever_comes_in_the_kernel_does_what_is_expected(frames in proptest::collection::vec(frames(), 50)) {
        let Some(installed) = installed() else { return Ok(()) };
        for frame in frames {
            check(&installed, &frame);
        }
    }
}
