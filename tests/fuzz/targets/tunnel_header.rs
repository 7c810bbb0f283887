//! Whatever another node begins a stream of a tunnel with is read as a header or refused: never more of it than there is, never
//! with a name or an address that cannot be written again, and no part of a header is another one that leads elsewhere.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh::proxy::tunnel_header::{Header, LONGEST, read, write};

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = read(bytes) else { return };
    assert!(bytes.len() <= LONGEST);
    assert!((1..=63).contains(&header.service.len()));
    let written = write(&header).expect("what was read can be written");
    assert_eq!(read(written.as_ref()), Ok(header));
    for length in 0..written.as_ref().len() {
        if let Ok(part) = read(&written.as_ref()[..length]) {
            let rest = (part.target, part.service);
            assert_eq!(rest, (header.target, header.service), "after {length} octets");
        }
    }
});
