//! An index as a file, version 1. Numbers are little-endian.
//!
//! ```text
//! 0   8  "orthHAM\n"
//! 8   4  version, 1
//! 12  4  bits of a code
//! 16  8  n: ids given
//! 24  8  first id
//! 32  8  1 if ids were removed, else 0
//! 40  16 zeros
//! 56  8  FNV-1a of bytes 0..56
//! 64     ceil(n / 64) tiles of 64 codes, [tile][byte of a code][64], places beyond n being zeros
//! then   if ids were removed: ceil(n / 32) words of 32 bits, bit i % 32 of word i / 32 being 1 if id i is still there
//! ```
//!
//! A row of a tile begins at a multiple of 64 bytes, so a mapped file is searched where it lies.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ndarray::Array2;

use super::codes::check_bits;
use super::index::{PLACE, all_words};
use super::neighbours::{first_id, merge};
use crate::hamming::{Codes, Index, Mask, SearchOptions};
use crate::kernels::hamming::Store;
use crate::kernels::hamming::cpu::Tiles;
use crate::{Device, Error, Result};

const WHAT: &str = "hamming::Index file";
const MAGIC: &[u8; 8] = b"orthHAM\n";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const TILE: usize = 64;
/// Bytes of codes at a time, where they are not written or read as a whole.
const PART: usize = 16 << 20;

fn io(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Io { what: path.display().to_string(), reason: error.to_string() }
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// What a file says of itself.
#[derive(Debug, Clone, Copy)]
struct Header {
    bits: usize,
    ids: usize,
    first_id: u64,
    removed: bool,
}

impl Header {
    fn write(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.bits as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&(self.ids as u64).to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_id.to_le_bytes());
        bytes[32..40].copy_from_slice(&u64::from(self.removed).to_le_bytes());
        let hash = fnv(&bytes[..56]);
        bytes[56..].copy_from_slice(&hash.to_le_bytes());
        bytes
    }

    /// The header of a file of `length` bytes, all of which it accounts for.
    fn read(bytes: &[u8; HEADER], length: u64) -> std::result::Result<Self, String> {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if &bytes[..8] != MAGIC {
            return Err("it is no index of codes".into());
        }
        if word(8) != VERSION {
            return Err(format!("version {}, expected {VERSION}", word(8)));
        }
        if long(56) != fnv(&bytes[..56]) {
            return Err("its header is damaged".into());
        }
        let (bits, ids) = (word(12) as usize, long(16));
        if check_bits(WHAT, bits).is_err() || ids > 1 << 32 || long(32) > 1 {
            return Err(format!("{ids} codes of {bits} bits"));
        }
        let Ok(ids) = usize::try_from(ids) else { return Err(format!("{ids} codes are too many for this machine")) };
        let header = Self { bits, ids, first_id: long(24), removed: long(32) == 1 };
        if header.first_id.checked_add(header.ids as u64).is_none() {
            return Err(format!("{ids} ids from {} on", header.first_id));
        }
        if header.length() != length {
            return Err(format!("{length} bytes long, expected {}", header.length()));
        }
        Ok(header)
    }

    fn tiles(&self) -> u64 {
        (self.ids.div_ceil(TILE) * (self.bits / 8 * TILE)) as u64
    }

    fn present(&self) -> u64 {
        if self.removed { (self.ids.div_ceil(32) * 4) as u64 } else { 0 }
    }

    fn length(&self) -> u64 {
        // At most 2^26 tiles of 2^16 bytes.
        HEADER as u64 + self.tiles() + self.present()
    }
}

impl Index {
    /// Saves codes, ids and which were removed: written beside `path` and brought to the disk, then renamed, so that whoever looks, whenever this stops, finds
    /// the old file or the whole new one. (A program killed meanwhile leaves `.PID.partial` beside it.)
    ///
    /// # Errors
    /// [`Error::Io`]; the device's own.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.partial", std::process::id()));
        let beside = path.with_file_name(name);
        let renamed = self.write(&beside).and_then(|()| fs::rename(&beside, path).map_err(|error| io(path, &error)));
        if renamed.is_err() {
            // nothing to report beyond the first error
            let _ = fs::remove_file(&beside);
        }
        #[cfg(unix)]
        if renamed.is_ok()
            && let Some(folder) = path.parent()
        {
            // The new name is on the disk too. Not every file system lets a folder be synchronised; the rename has been made either way.
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        renamed
    }

    fn write(&self, path: &Path) -> Result<()> {
        let io = |error: std::io::Error| io(path, &error);
        let header =
            Header { bits: self.bits, ids: self.ids(), first_id: self.first_id, removed: self.present.is_some() };
        if header.first_id.checked_add(header.ids as u64).is_none() {
            return Err(first_id(PLACE, header.ids as u64, header.first_id));
        }
        let mut file = BufWriter::new(File::create(path).map_err(io)?);
        file.write_all(&header.write()).map_err(io)?;
        match &self.store {
            Store::Host(tiles) => file.write_all(tiles.data()).map_err(io)?,
            Store::Gpu(_) => {
                let step = (PART / (self.bits / 8)).next_multiple_of(TILE);
                for first in (0..header.ids).step_by(step) {
                    let codes = self.store.codes(first, header.ids.min(first + step))?;
                    file.write_all(Tiles::of_codes(self.bits, &codes.view())?.data()).map_err(io)?;
                }
            }
        }
        for word in self.present.iter().flat_map(|present| present.words()) {
            file.write_all(&word.to_le_bytes()).map_err(io)?;
        }
        file.into_inner().map_err(|error| io(error.into_error()))?.sync_all().map_err(io)
    }

    /// Loads what [`Index::save`] wrote, from any device.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for what is no index, of another version, or not as long as it says; [`Error::OutOfMemory`]; the device's own.
    pub fn load(device: &Device, path: impl AsRef<Path>) -> Result<Self> {
        let file = IndexFile::open(path)?;
        file.part(device, 0..file.ids())
    }

    /// Maps what [`Index::save`] wrote, on the CPU: codes are read from the file as searches come to them, so an index may be larger than memory.
    ///
    /// The file must not be written to or truncated meanwhile; to replace it is fine, as [`Index::save`] does. What is added is kept in memory, and the
    /// codes of the file with it.
    ///
    /// # Errors
    /// As [`Index::load`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn map(path: impl AsRef<Path>) -> Result<Self> {
        use crate::kernels::hamming::cpu::mapped::Mapped;
        let file = IndexFile::open(path)?;
        let header = file.header;
        let mapped = Mapped::new(&file.file, HEADER as u64, header.tiles() as usize);
        let mapped = mapped.map_err(|error| io(&file.path, &error))?;
        Ok(Self {
            device: Device::Cpu,
            bits: header.bits,
            first_id: header.first_id,
            store: Store::Host(Tiles::mapped(header.bits, header.ids, mapped)),
            present: file.present()?,
        })
    }
}

/// An index's file, to be searched in parts where it is larger than a device's memory: [`IndexFile::parts`], [`search_parts`].
#[derive(Debug)]
pub struct IndexFile {
    path: PathBuf,
    file: File,
    header: Header,
}

impl IndexFile {
    /// Opens what [`Index::save`] wrote and reads its header.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] as [`Index::load`] has it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let mut file = File::open(&path).map_err(|error| io(&path, &error))?;
        let length = file.metadata().map_err(|error| io(&path, &error))?.len();
        let format = |reason: String| Error::Format { what: WHAT, reason: format!("{}: {reason}", path.display()) };
        let mut header = [0; HEADER];
        if length < HEADER as u64 {
            return Err(format(format!("{length} bytes long, expected {HEADER} or more")));
        }
        file.read_exact(&mut header).map_err(|error| io(&path, &error))?;
        let header = Header::read(&header, length).map_err(format)?;
        Ok(Self { path, file, header })
    }

    /// Bits of a code.
    pub fn bits(&self) -> usize {
        self.header.bits
    }

    /// Ids given, those removed too.
    pub fn ids(&self) -> usize {
        self.header.ids
    }

    /// What ids count from.
    pub fn first_id(&self) -> u64 {
        self.header.first_id
    }

    /// The codes of some ids as an index on a device, whose first id is theirs.
    ///
    /// # Errors
    /// [`Error::Argument`] for a range that is not in the file; otherwise as [`Index::load`].
    pub fn part(&self, device: &Device, range: Range<usize>) -> Result<Index> {
        if range.start > range.end || range.end > self.ids() {
            return Err(Error::Argument {
                place: PLACE,
                quantity: "range",
                expected: format!("within 0..{}", self.ids()),
                found: format!("{range:?}"),
            });
        }
        let mut index = Index::new(device, self.bits())?.with_first_id(self.first_id() + range.start as u64);
        let whole = range == (0..self.ids());
        let tile_bytes = self.bits() / 8 * TILE;
        if device.is_cpu() && whole {
            let tiles = Tiles::filled(self.bits(), range.len(), |tiles| self.read(HEADER as u64, tiles))?;
            index.store = Store::Host(tiles);
        } else {
            let step = (PART / tile_bytes).max(1);
            for tile in (range.start / TILE..range.end.div_ceil(TILE)).step_by(step) {
                let end = range.end.div_ceil(TILE).min(tile + step);
                let from = (HEADER + tile * tile_bytes) as u64;
                let tiles = Tiles::filled(self.bits(), (end - tile) * TILE, |tiles| self.read(from, tiles))?;
                let ids = range.start.max(tile * TILE)..range.end.min(end * TILE);
                let words: Array2<u32> = tiles.codes(ids.start - tile * TILE, ids.end - tile * TILE);
                index.add(&Codes::trusted(device.tensor_from(words)?, self.bits()))?;
            }
        }
        if let Some(present) = self.present()? {
            let flags = range.map(|id| present.allows(id as u32));
            index.present = Some(if whole { present } else { Mask::new(flags) });
        }
        Ok(index)
    }

    /// The whole file in parts of `ids` ids each, made as they are asked for: what [`search_parts`] takes.
    pub fn parts<'a>(&'a self, device: &'a Device, ids: usize) -> impl Iterator<Item = Result<Index>> + 'a {
        let step = ids.max(1);
        (0..self.ids()).step_by(step).map(move |first| self.part(device, first..self.ids().min(first + step)))
    }

    /// Which ids are there, if not all.
    fn present(&self) -> Result<Option<Mask>> {
        if !self.header.removed {
            return Ok(None);
        }
        // At most 2^29: 32 codes to a word.
        let mut bytes = vec![0; self.header.present() as usize];
        self.read(HEADER as u64 + self.header.tiles(), &mut bytes)?;
        let words = bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word));
        let words = words.zip(all_words(self.ids())).map(|(word, all)| word & all).collect();
        Ok(Some(Mask::of(words, self.ids())))
    }

    fn read(&self, first: u64, to: &mut [u8]) -> Result<()> {
        let mut file = &self.file;
        match file.seek(SeekFrom::Start(first)).and_then(|_| file.read_exact(to)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                let reason = format!("{}: it became shorter while it was read", self.path.display());
                Err(Error::Format { what: WHAT, reason })
            }
            Err(error) => Err(io(&self.path, &error)),
        }
    }
}

/// The nearest of each query among indexes that are there one at a time, say [`IndexFile::parts`]: ids, `first_id` of the part added, and distances,
/// (queries, min(k, codes)). Waits for each part.
///
/// # Errors
/// Those of the parts and of [`Index::search`].
pub fn search_parts(
    parts: impl IntoIterator<Item = Result<Index>>,
    queries: &Codes,
    k: usize,
) -> Result<(Array2<u64>, Array2<u32>)> {
    let mut best = (Array2::zeros((queries.len(), 0)), Array2::zeros((queries.len(), 0)));
    for part in parts {
        let found = part?.search(queries, &SearchOptions::new(k))?;
        best = merge(&[best, (found.global_ids()?, found.distances.to_array()?)], k)?;
    }
    Ok(best)
}
