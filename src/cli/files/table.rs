//! A `.csv` of numbers: a line a row, with or without a line of names first (which has no number in it); one column is a vector.

use std::path::Path;

use super::array::{Body, Dtype, RawArray, open_file};
use crate::cli::complaint::bad;
use crate::cli::memory;

pub fn open(path: &Path) -> anyhow::Result<RawArray> {
    let (file, _) = open_file(path)?;
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(file);
    let (mut bytes, mut columns, mut rows) = (Vec::<u8>::new(), None, 0);
    let most = memory::available().unwrap_or(u64::MAX);
    for (i, record) in reader.records().enumerate() {
        let record = record.map_err(|error| bad(path.display(), one_line(&error)))?;
        let line = record.position().map_or(0, |position| position.line());
        if i == 0 && record.iter().all(|field| field.parse::<f64>().is_err()) {
            columns = Some(record.len());
            continue;
        }
        let expected = *columns.get_or_insert(record.len());
        if record.len() != expected {
            return Err(bad(path.display(), format!("line {line} has {} values, expected {expected}", record.len())));
        }
        if bytes.len() as u64 > most || bytes.try_reserve(8 * record.len()).is_err() {
            let what =
                format!("up to line {line} it has more numbers than the free memory; a .npy file is read from disk");
            return Err(bad(path.display(), what));
        }
        for field in &record {
            let x: f64 =
                (field.parse()).map_err(|_| bad(path.display(), format!("line {line}: {field:?} is not a number")))?;
            bytes.extend_from_slice(&x.to_ne_bytes());
        }
        rows += 1;
    }
    let columns = columns.unwrap_or(0);
    Ok(RawArray {
        path: path.to_path_buf(),
        dtype: Dtype::F64,
        dtype_name: "numbers".to_string(),
        shape: if columns == 1 { vec![rows] } else { vec![rows, columns] },
        fortran: false,
        swapped: false,
        body: Body::Memory(bytes),
    })
}

/// A csv error without the line breaks it may have.
pub fn one_line(error: &csv::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
