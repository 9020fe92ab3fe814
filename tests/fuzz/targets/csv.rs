#![no_main]

use orthant_fuzz::hostile::{heap, readers, seeds};

orthant_fuzz::target!(seeds::csv(), heap::READERS, readers::csv);
