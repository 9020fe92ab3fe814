#![no_main]

use orthant_fuzz::hostile::{heap, options, seeds};

orthant_fuzz::target!(seeds::options(), heap::OPTIONS, options::options);
