#![no_main]

use orthant_fuzz::hostile::{heap, indexes, seeds};

orthant_fuzz::target!(seeds::indexes(), heap::READERS, indexes::indexes);
