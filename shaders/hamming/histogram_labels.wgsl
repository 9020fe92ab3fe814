// The labels of a histogram, and whether a code is relevant to a query.

@group(0) @binding(3) var<storage, read_write> relevant: array<atomic<u32>>; // (queries, bins)
@group(0) @binding(4) var<storage, read> labels: array<u32>;                 // (codes)
@group(0) @binding(5) var<storage, read> query_labels: array<u32>;           // (queries)

fn is_relevant(query: u32, code: u32) -> bool {
    return labels[params.labels_offset + code] == query_labels[params.query_labels_offset + query];
}

fn add_relevant(at: u32, count: u32) {
    atomicAdd(&relevant[params.relevant_offset + at], count);
}
