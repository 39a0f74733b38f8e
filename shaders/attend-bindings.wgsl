// What attention over a split reads and writes, attend.wgsl and attend-stream.wgsl alike; binding 6 is their own.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cache: array<vec4<u32>>;    // blocks of segments and exact parts
@group(0) @binding(2) var<storage, read> words: array<u32>;          // the same buffer
@group(0) @binding(3) var<storage, read> queries: array<f32>;
@group(0) @binding(4) var<storage, read> items: array<Item>;
@group(0) @binding(5) var<storage, read> splits: array<Split>;
@group(0) @binding(7) var<storage, read_write> partials: array<f32>; // [split, row, head]: maximum, sum, HEAD_DIM values
@group(0) @binding(8) var<storage, read_write> scoresOut: array<f32>; // [row, head, scoreStride]; padding cells NEVER
