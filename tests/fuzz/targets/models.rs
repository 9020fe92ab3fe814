#![no_main]

use orthant_fuzz::hostile::{heap, models, seeds};

orthant_fuzz::target!(seeds::models(), heap::READERS, models::models);
