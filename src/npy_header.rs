//! The header of a `.npy` file: looked at before npyz parses it, as a file may say anything.

use std::io::Read;

use npyz::NpyHeader;

/// A header may be this long; NumPy itself reads 10000 bytes.
const MAX_HEADER_BYTES: u64 = 1 << 16;
/// How deep its brackets may be: a record with a shape in the dictionary takes 4. npyz's parser takes time that doubles with each.
const MAX_DEPTH: i32 = 8;

/// The header, after a look at its numbers: npyz multiplies the axes without a check.
pub fn read_header(from: &mut impl Read) -> std::io::Result<NpyHeader> {
    let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_string());
    let mut header = vec![0; 10];
    from.read_exact(&mut header)?;
    let mut length = u64::from(u16::from_le_bytes([header[8], header[9]]));
    if header[6] > 1 {
        let mut high = [0; 2];
        from.read_exact(&mut high)?;
        length += u64::from(u16::from_le_bytes(high)) << 16;
        header.extend_from_slice(&high);
    }
    if !header.starts_with(b"\x93NUMPY") || length > MAX_HEADER_BYTES {
        return Err(invalid("no header"));
    }
    let start = header.len();
    if from.take(length).read_to_end(&mut header)? as u64 != length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let text = String::from_utf8_lossy(&header[start..]);
    if !is_plain(&text) {
        return Err(invalid("the header is no description of an array"));
    }
    let numbers =
        text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| word.starts_with(char::is_numeric));
    // Of the shape, and of nothing else in the header of an array of numbers; an axis of 0 hides no other.
    numbers
        .map(|word| word.trim_end_matches('L').parse::<u64>().ok())
        .try_fold(1u64, |product, n| product.checked_mul(n?.max(1)))
        .ok_or_else(|| invalid("the shape has more than 2^64 elements"))?;
    // Behind the first line the error has a drawing of the place.
    NpyHeader::from_reader(header.as_slice())
        .map_err(|error| invalid(error.to_string().lines().next().unwrap_or("no header").trim_end_matches([':', ' '])))
}

/// Whether what is outside quotes has few brackets in brackets and no signs, as descriptions of arrays have none.
fn is_plain(header: &str) -> bool {
    let (mut depth, mut quote, mut escaped) = (0, None, false);
    for c in header.chars() {
        match (c, quote) {
            _ if std::mem::take(&mut escaped) => {}
            ('\\', _) => escaped = true,
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            ('(' | '[' | '{', None) => depth += 1,
            (')' | ']' | '}', None) => depth -= 1,
            ('-' | '+', None) => return false,
            _ => {}
        }
        if !(0..=MAX_DEPTH).contains(&depth) {
            return false;
        }
    }
    true
}
