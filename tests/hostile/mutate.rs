//! Files made from valid ones: some bytes, words, numbers or pieces changed.

use proptest::prelude::*;
use proptest::sample::Index;

use super::formats::{Format, put_right};

/// What a number in a text may become.
const NUMBERS: [&str; 22] = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "1e999",
    "-1e300",
    "1e-320",
    "0.1",
    "NaN",
    "null",
    "true",
    "\"7\"",
    "[]",
    "{}",
    "4294967296",
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999",
];

#[derive(Clone, Debug)]
pub enum Edit {
    Flip(Index, u8),
    Set(Index, u8),
    Word(Index, u32),
    Long(Index, u64),
    Truncate(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// A piece copied to another place, over what is there or between.
    Copy(Index, Index, usize, bool),
    /// The nth number of the text as another.
    Number(Index, &'static str),
    /// The nth line or member, up to the comma behind it, once more.
    Twice(Index),
}

pub fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = any::<Index>;
    let word = prop_oneof![
        Just(0u32),
        Just(1),
        Just(u32::MAX),
        Just(0x7fc0_0000),
        Just(0x7f80_0000),
        Just(0x7c00_7c00),
        Just(0x8000_0000),
        any::<u32>(),
    ];
    let long = prop_oneof![
        Just(0u64),
        Just(1),
        Just(u64::MAX),
        Just(u64::MAX - 1),
        Just(1 << 63),
        Just(1 << 32),
        Just(f64::NAN.to_bits()),
        Just(f64::INFINITY.to_bits()),
        Just(1e300f64.to_bits()),
        Just((-1e300f64).to_bits()),
        Just(1e-310f64.to_bits()),
        0..100_000u64,
    ];
    let edit = prop_oneof![
        2 => (at(), 0..8u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        2 => (at(), word).prop_map(|(at, word)| Edit::Word(at, word)),
        2 => (at(), long).prop_map(|(at, long)| Edit::Long(at, long)),
        1 => at().prop_map(Edit::Truncate),
        1 => (at(), proptest::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        1 => (at(), 1..40usize).prop_map(|(at, length)| Edit::Remove(at, length)),
        1 => (at(), at(), 1..40usize, any::<bool>()).prop_map(|(from, to, length, over)| Edit::Copy(from, to, length, over)),
        4 => (at(), proptest::sample::select(&NUMBERS[..])).prop_map(|(at, number)| Edit::Number(at, number)),
        1 => at().prop_map(Edit::Twice),
    ];
    proptest::collection::vec(edit, 1..4)
}

/// `seed` with the edits made, and what its format has of lengths put right if so asked.
pub fn mutated(format: Format, seed: &[u8], edits: &[Edit], right: bool) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    edits.iter().for_each(|edit| make(&mut bytes, edit));
    if right {
        put_right(format, &mut bytes);
    }
    bytes
}

fn make(bytes: &mut Vec<u8>, edit: &Edit) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    let place = |at: &Index| at.index(length);
    let over = |bytes: &mut Vec<u8>, at: usize, new: &[u8]| {
        let end = (at + new.len()).min(length);
        bytes[at..end].copy_from_slice(&new[..end - at]);
    };
    match edit {
        Edit::Flip(at, bit) => bytes[place(at)] ^= 1 << bit,
        Edit::Set(at, byte) => bytes[place(at)] = *byte,
        // Where such numbers usually lie.
        Edit::Word(at, word) => over(bytes, place(at) / 4 * 4, &word.to_le_bytes()),
        Edit::Long(at, long) => over(bytes, place(at) / 8 * 8, &long.to_le_bytes()),
        Edit::Truncate(at) => bytes.truncate(place(at)),
        Edit::Insert(at, new) => drop(bytes.splice(place(at)..place(at), new.iter().copied())),
        Edit::Remove(at, count) => drop(bytes.drain(place(at)..(place(at) + count).min(length))),
        Edit::Copy(from, to, count, on_top) => {
            let piece = bytes[place(from)..(place(from) + count).min(length)].to_vec();
            if *on_top {
                over(bytes, place(to), &piece);
            } else {
                bytes.splice(place(to)..place(to), piece);
            }
        }
        Edit::Number(at, number) => {
            let numbers = numbers(bytes);
            if !numbers.is_empty() {
                bytes.splice(numbers[at.index(numbers.len())].clone(), number.bytes());
            }
        }
        Edit::Twice(at) => {
            let start = place(at);
            let end = bytes[start..].iter().position(|byte| matches!(byte, b',' | b'\n')).map(|end| start + end + 1);
            if let Some(end) = end {
                let piece = bytes[start..end].to_vec();
                bytes.splice(start..start, piece);
            }
        }
    }
}

/// Runs of what numbers are written with.
fn numbers(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let part = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+' | b'e');
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + bytes[at..].iter().take_while(|byte| part(**byte)).count();
        if bytes[at..end].iter().any(u8::is_ascii_digit) {
            found.push(at..end);
        }
        at = end.max(at + 1);
    }
    found
}
