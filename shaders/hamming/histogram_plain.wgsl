// A histogram without labels.

fn is_relevant(query: u32, code: u32) -> bool {
    return false;
}

fn add_relevant(at: u32, count: u32) {}
