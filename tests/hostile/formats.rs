//! What formats have of lengths and checksums, put right again after a mutation: that it is not all that a reader looks at.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Npy,
    Npz,
    Safetensors,
    Csv,
    Json,
    Index,
}

/// Sets the length of the header, or its checksum, by what is there.
pub fn put_right(format: Format, bytes: &mut [u8]) {
    match format {
        Format::Npy => {
            if let Some(end) = bytes.iter().skip(10).position(|&byte| byte == b'\n') {
                bytes[8..10].copy_from_slice(&(end as u16 + 1).to_le_bytes());
            }
        }
        Format::Safetensors => {
            if let Some(length) = bytes.get(8..).and_then(json_length) {
                bytes[..8].copy_from_slice(&(length as u64).to_le_bytes());
            }
        }
        Format::Index => {
            if bytes.len() >= 64 {
                let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
                let hash = bytes[..56].iter().fold(0xcbf2_9ce4_8422_2325, fnv);
                bytes[56..64].copy_from_slice(&hash.to_le_bytes());
            }
        }
        Format::Npz | Format::Csv | Format::Json => {}
    }
}

/// How long the object is that `bytes` begin with, and the spaces behind it.
fn json_length(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (at, &byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' if !quoted => depth += 1,
            b'}' if !quoted => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    let spaces = bytes[at + 1..].iter().take_while(|&&byte| byte == b' ').count();
                    return Some(at + 1 + spaces);
                }
            }
            _ => {}
        }
    }
    None
}
