//! Hostile and ordinary streams against the reader.

use super::*;

fn header(name: &[u8], flag: u8, size: u64) -> [u8; BLOCK] {
    let mut b = [0u8; BLOCK];
    b[..name.len()].copy_from_slice(name);
    b[100..108].copy_from_slice(b"0000644\0");
    b[108..116].copy_from_slice(b"0000000\0");
    b[116..124].copy_from_slice(b"0000000\0");
    b[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    b[136..148].copy_from_slice(b"00000000000\0");
    b[156] = flag;
    b[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut b);
    b
}

fn seal(b: &mut [u8; BLOCK]) {
    b[148..156].fill(b' ');
    let sum: u32 = b.iter().map(|x| u32::from(*x)).sum();
    b[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut v = data.to_vec();
    v.resize(data.len().div_ceil(BLOCK) * BLOCK, 0);
    v
}

fn all(stream: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Error> {
    let mut r = TarReader::new(stream, &Limits::default());
    let mut out = Vec::new();
    while let Some(e) = r.next()? {
        let mut data = Vec::new();
        loop {
            let s = r.data()?;
            if s.is_empty() {
                break;
            }
            data.extend_from_slice(s);
        }
        out.push((e, data));
    }
    let (digest, total) = r.finish()?;
    assert_eq!(total, stream.len() as u64);
    assert_eq!(digest, Digest::sha256_of(stream));
    Ok(out)
}

#[test]
fn reads_files_long_names_and_trailing_padding() {
    let long = vec![b'n'; 300];
    let mut s = Vec::new();
    s.extend(header(b"a", b'0', 5));
    s.extend(padded(b"hello"));
    s.extend(header(b"././@LongLink", b'L', 301));
    s.extend(padded(&[&long[..], b"\0"].concat()));
    s.extend(header(b"cut", b'0', 0));
    s.extend(header(b"d/", 0, 0));
    s.extend(header(b"x", b'x', 20));
    s.extend(padded(b"20 path=renamed/one\n"));
    s.extend(header(b"y", b'0', 1));
    s.extend(padded(b"z"));
    s.extend([0; 1024 * 5]);
    let got = all(&s).unwrap();
    assert_eq!(got.len(), 4);
    assert_eq!(got[0].1, b"hello");
    assert_eq!(got[1].0.path, long);
    assert_eq!(got[2].0.kind, Kind::Directory);
    assert_eq!(got[3].0.path, b"renamed/one");
    assert_eq!(got[3].1, b"z");
}

#[test]
fn accepts_a_stream_without_end_blocks() {
    let s = header(b"a", b'0', 0);
    assert_eq!(all(&s).unwrap().len(), 1);
    assert_eq!(all(&[]).unwrap().len(), 0);
}

#[test]
fn size_of_a_link_is_ignored() {
    let mut s = header(b"a", b'2', 700).to_vec();
    s.extend(header(b"b", b'0', 0));
    assert_eq!(all(&s).unwrap().len(), 2);
}

#[test]
fn base256_sizes() {
    let mut h = header(b"a", b'0', 0);
    h[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    seal(&mut h);
    let mut s = h.to_vec();
    s.extend(padded(b"abc"));
    assert_eq!(all(&s).unwrap()[0].1, b"abc");
    for size in [
        [0xffu8; 12],
        [
            0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ],
    ] {
        h[124..136].copy_from_slice(&size);
        seal(&mut h);
        assert!(all(&h).is_err());
    }
}

#[test]
fn refuses_malformed_streams() {
    let good = header(b"a", b'0', 5);
    let mut wrong_sum = good;
    wrong_sum[0] = b'b';
    let mut bad_octal = good;
    bad_octal[124] = b'9';
    seal(&mut bad_octal);
    let mut huge_uid = good;
    huge_uid[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    seal(&mut huge_uid);
    let lone_zero = [&[0u8; 512][..], &good[..]].concat();
    let pax_then_end = [&header(b"x", b'x', 11)[..], &padded(b"11 path=ab\n")].concat();
    let sparse = header(b"s", b'S', 0);
    let bomb_name = header(b"L", b'L', (1 << 33) - 1);
    let bomb_pax = header(b"x", b'x', (1 << 33) - 1);
    let pax_sparse = [
        &header(b"x", b'x', 22)[..],
        &padded(b"22 GNU.sparse.major=1\n"),
        &header(b"f", b'0', 0),
    ]
    .concat();
    let nul = [
        &header(b"x", b'x', 12)[..],
        &padded(b"12 path=a\0b\n"),
        &header(b"f", b'0', 0),
    ]
    .concat();
    let cases: Vec<(&str, &[u8])> = vec![
        ("checksum", &wrong_sum),
        ("octal", &bad_octal),
        ("uid", &huge_uid),
        ("data missing", &good),
        ("half header", &good[..300]),
        ("lone zero block", &lone_zero),
        ("dangling pax", &pax_then_end),
        ("sparse", &sparse),
        ("name bomb", &bomb_name),
        ("pax bomb", &bomb_pax),
        ("pax sparse", &pax_sparse),
        ("nul", &nul),
        ("text", &[b'x'; 2048]),
    ];
    for (what, stream) in cases {
        assert!(all(stream).is_err(), "{what}");
    }
}

#[test]
fn every_truncation_and_bit_flip_is_survived() {
    let mut s = header(b"a", b'0', 5).to_vec();
    s.extend(padded(b"hello"));
    s.extend(header(b"x", b'x', 20));
    s.extend(padded(b"20 path=renamed/one\n"));
    s.extend(header(b"y", b'1', 0));
    s.extend([0; 1024]);
    for cut in 0..s.len() {
        let _ = all(&s[..cut]);
    }
    for bit in 0..s.len() * 8 {
        let mut t = s.clone();
        t[bit / 8] ^= 1 << (bit % 8);
        let _ = all(&t);
    }
}
