//! Errors that wgpu reports through its callbacks, kept until the next call can return them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lock;
use crate::Error;

#[derive(Debug, Clone)]
pub(crate) enum Fault {
    OutOfMemory,
    Lost(String),
    Refused(String),
}

/// The first fault not yet returned. A lost device stays lost.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    first: Mutex<Option<Fault>>,
    reports: AtomicU64,
}

impl Faults {
    pub(crate) fn report(&self, error: wgpu::Error) {
        let fault = match error {
            wgpu::Error::OutOfMemory { .. } => Fault::OutOfMemory,
            // wgpu 30 reports every use of a lost device as a validation error.
            wgpu::Error::Validation { description, .. } if description.contains("device is lost") => {
                Fault::Lost(description)
            }
            wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
                Fault::Refused(description)
            }
        };
        // Counted last: who sees the count sees the fault.
        lock(&self.first).get_or_insert(fault);
        self.reports.fetch_add(1, Ordering::Release);
    }

    /// How many were reported so far: more after a call than before it, and the call has failed.
    pub(crate) fn reports(&self) -> u64 {
        self.reports.load(Ordering::Acquire)
    }

    pub(crate) fn lose(&self, reason: String) {
        let mut slot = lock(&self.first);
        if !matches!(*slot, Some(Fault::Lost(_))) {
            *slot = Some(Fault::Lost(reason));
        }
    }

    /// Work that was recorded could not be submitted: who waits for its results must not take them for what it made.
    pub(crate) fn lose_work(&self) {
        let mut slot = lock(&self.first);
        let why = match &*slot {
            Some(Fault::Lost(_)) => return,
            Some(Fault::Refused(reason)) => reason,
            Some(Fault::OutOfMemory) | None => "out of memory",
        };
        *slot = Some(Fault::Lost(format!("recorded work could not be submitted: {why}")));
    }

    pub(crate) fn take(&self) -> Option<Fault> {
        let mut slot = lock(&self.first);
        match &*slot {
            Some(Fault::Lost(_)) => slot.clone(),
            _ => slot.take(),
        }
    }
}

impl Faults {
    /// The error of a lost device, if it is: what a wait asks, which has made no call of its own.
    pub(crate) fn lost(&self, place: &'static str, device: &str) -> crate::Result<()> {
        match &*lock(&self.first) {
            Some(fault @ Fault::Lost(_)) => Err(fault.clone().into_error(place, 0, device)),
            _ => Ok(()),
        }
    }
}

impl Fault {
    pub(crate) fn into_error(self, place: &'static str, bytes: u64, device: &str) -> Error {
        let device = device.to_string();
        match self {
            Fault::OutOfMemory => Error::OutOfMemory { place, bytes, device },
            Fault::Lost(reason) => Error::DeviceLost { place, device, reason },
            Fault::Refused(reason) => Error::Backend { place, device, reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Faults};
    use crate::Error;

    fn memory() -> wgpu::Error {
        wgpu::Error::OutOfMemory { source: "planted".into() }
    }

    fn refusal(description: &str) -> wgpu::Error {
        wgpu::Error::Validation { source: "planted".into(), description: description.into() }
    }

    #[test]
    fn a_fault_is_told_once_and_a_loss_for_ever() {
        let faults = Faults::default();
        assert!(faults.take().is_none());
        faults.report(memory());
        faults.report(refusal("a consequence of it"));
        let error = faults.take().map(|fault| fault.into_error("matmul", 64, "GPU"));
        assert_eq!(error, Some(Error::OutOfMemory { place: "matmul", bytes: 64, device: "GPU".into() }));
        assert!(faults.take().is_none());
        faults.report(refusal("no such binding"));
        assert!(matches!(faults.take(), Some(Fault::Refused(_))));
        assert_eq!(faults.reports(), 3);
        faults.report(refusal("an encoder that is not valid"));
        faults.lose_work();
        assert!(matches!(faults.take(), Some(Fault::Lost(reason)) if reason.contains("an encoder")));
        let faults = Faults::default();
        faults.lose("unplugged".into());
        faults.report(memory());
        assert!(matches!(faults.take(), Some(Fault::Lost(_))));
        assert!(matches!(faults.take(), Some(Fault::Lost(_))));
    }
}
