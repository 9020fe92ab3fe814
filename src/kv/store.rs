//! The memory of one layer: [`Store`].

pub(crate) mod device;
mod host;

use std::sync::Arc;

use super::layer::LatentLayer;
use crate::Result;
use crate::device::Device;

pub(crate) use device::{Angles, DeviceStore};
pub(crate) use host::{HostStore, Rows};

/// The pages and slots of one layer, by id. Which are in use its owner knows; contents of new ones are undefined.
#[derive(Debug)]
pub(crate) enum Store {
    Host(HostStore),
    Device(Box<DeviceStore>),
}

impl Store {
    /// An empty one.
    pub(crate) fn new(device: &Device, layer: &LatentLayer, angles: &Arc<Angles>) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Host(HostStore::default())),
            Device::Gpu(gpu) => Ok(Self::Device(Box::new(DeviceStore::new(gpu, layer, angles)?))),
        }
    }

    /// Makes room for the pages `0..count`, and memory for those of `ids`.
    pub(crate) fn reserve_pages(&mut self, layer: &LatentLayer, ids: &[u32], count: usize) -> Result<()> {
        match self {
            Self::Host(store) => {
                store.pages.resize_with(count.max(store.pages.len()), Box::default);
                for &id in ids {
                    store.pages[id as usize] = vec![0; layer.layout.words].into();
                }
                Ok(())
            }
            Self::Device(store) => store.pages.reserve(&store.gpu, count),
        }
    }

    /// Makes room for the slots `0..count`, and memory for `id`.
    pub(crate) fn reserve_slot(&mut self, layer: &LatentLayer, id: u32, count: usize) -> Result<()> {
        match self {
            Self::Host(store) => {
                store.slots.resize_with(count.max(store.slots.len()), || Rows::new(layer.exact, 0));
                store.slots[id as usize] = Rows::new(layer.exact, layer.slot_elements());
                Ok(())
            }
            Self::Device(store) => {
                store.slots.reserve(&store.gpu, count)?;
                // Nothing of what was there before gets into files.
                store.gpu.clear_view(store.slots.item(id));
                Ok(())
            }
        }
    }

    /// Pages that are no longer in use. A GPU keeps them for the next ones.
    pub(crate) fn free_pages(&mut self, ids: impl Iterator<Item = u32>) {
        if let Self::Host(store) = self {
            ids.for_each(|id| store.pages[id as usize] = Box::default());
        }
    }

    /// A slot that is no longer in use. A GPU keeps it for the next one.
    pub(crate) fn free_slot(&mut self, id: u32) {
        if let Self::Host(store) = self {
            store.slots[id as usize].clear();
        }
    }

    /// Copies a slot's rows.
    pub(crate) fn copy_slot(&mut self, from: u32, to: u32) -> Result<()> {
        match self {
            Self::Host(store) => {
                store.slots[to as usize] = store.slots[from as usize].clone();
                Ok(())
            }
            Self::Device(store) => store.copy_slot(from, to),
        }
    }

    /// The words of pages, one after the other, for files. Waits for a GPU.
    pub(crate) fn read_pages(&self, ids: &[u32]) -> Result<Vec<u32>> {
        match self {
            Self::Host(store) => Ok(ids.iter().flat_map(|id| store.pages[*id as usize].iter().copied()).collect()),
            Self::Device(store) => store.read_items(&store.pages, ids),
        }
    }

    /// The bytes of a slot's rows, for files. Waits for a GPU.
    pub(crate) fn read_slot(&self, layer: &LatentLayer, id: u32) -> Result<Vec<u8>> {
        match self {
            Self::Host(store) => Ok(store.slots[id as usize].as_bytes().to_vec()),
            Self::Device(store) => Ok(device::rows_of_words(layer, &store.read_items(&store.slots, &[id])?)),
        }
    }

    /// Writes what [`Store::read_pages`] gave of one page.
    pub(crate) fn write_page(&mut self, id: u32, words: &[u32]) -> Result<()> {
        match self {
            Self::Host(store) => {
                store.pages[id as usize].copy_from_slice(words);
                Ok(())
            }
            Self::Device(store) => store.pages.write(&store.gpu, id, words),
        }
    }

    /// Writes what [`Store::read_slot`] gave.
    pub(crate) fn write_slot(&mut self, layer: &LatentLayer, id: u32, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Host(store) => {
                store.slots[id as usize].copy_bytes(bytes);
                Ok(())
            }
            Self::Device(store) => store.slots.write(&store.gpu, id, &device::words_of_rows(layer, bytes)),
        }
    }
}
