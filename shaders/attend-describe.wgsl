// Where the blocks of a split's records lie, for attend-stream.wgsl: as long as no record changes or moves, every dispatch may read the same table.
// Blocks stand in one order, tier by tier and within a tier record by record, so that lanes beside one another meet the same tier.
//
// `table` [split, kvHead, TABLE]: the numbers of blocks and of those before the first whose values have less than 8 bits; then of each record: word of its mean, bases of scales (binary16, keys' below), scale of the mean; then of each block:
//   x, y  places of keys and values in units of 16 bytes, each with its bits' nibble (1..4, 8; 9 and 10 for 16 and 32) from bit 27 on
//   z     word of the keys' scales
//   w     words from there to the values' scales (8 bits), the block's cell among the split's (13), tokens less 1 (2), record
//
// Dispatch [splits, KV_HEADS], 64 threads.

const SLOTS = 16u * SEGMENTS;

@group(0) @binding(0) var<storage, read> cache: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> words: array<u32>;
@group(0) @binding(2) var<storage, read> splits: array<Split>;
@group(0) @binding(3) var<storage, read> segments: array<u32>;
@group(0) @binding(4) var<storage, read_write> table: array<vec4<u32>>;

/// [tier][record]
var<workgroup> groups: array<Group, SLOTS>;
/// The first cell; the first block in the order of all.
var<workgroup> cells: array<u32, SLOTS>;
var<workgroup> starts: array<u32, SLOTS + 1u>;
var<workgroup> records: array<u32, SEGMENTS>;

fn layOut(split: Split, r: u32, kvHead: u32, to: u32) {
  let block = segments[split.first + r];
  let tokens = words[block * 4u + 1u];
  let offset = words[block * 4u + 3u + kvHead];
  let record = block + offset / 16u;
  let first = cache[record];
  let counts = vec3(first.z, first.w, cache[record + 1u].x);
  // A head without a record: the segment's own first bytes, with no tier present.
  let present = select(first.x & 0xffffu, 0u, offset == 0u);
  let parts = partsOf(present, counts, tokens);
  records[r] = record;
  table[to] = vec4(record * 4u + parts.mean / 4u, (first.x >> 16u) | (first.y << 16u), first.y >> 16u, 0u);
  var scaleAt = parts.scales;
  var codeAt = record + parts.codes;
  var cell = 0u;
  var left = present;
  let kinds = countOneBits(present);
  for (var i = 0u; i < kinds; i++) {
    let tier = firstTrailingBit(left);
    left &= left - 1u;
    let g = groupAt(tier, countOf(counts, i), scaleAt, codeAt);
    let slot = tier * SEGMENTS + r;
    groups[slot] = g;
    cells[slot] = r * MAX_CELLS + cell;
    cell += pad4(g.n);
    scaleAt = g.scaleEnd;
    codeAt = g.codeEnd;
  }
}
fn nibbleOf(bits: u32) -> u32 { return select(bits, select(9u, 10u, bits == 32u), bits > 8u); }

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let split = splits[id.x];
  let to = (id.x * KV_HEADS + id.y) * TABLE;
  for (var i = lane; i < SLOTS; i += 64u) { groups[i].n = 0u; }
  workgroupBarrier();
  if (lane < split.count) { layOut(split, lane, id.y, to + 1u + lane); }
  workgroupBarrier();
  if (lane == 0u) {
    var at = 0u;
    for (var slot = 0u; slot < SLOTS; slot++) {
      starts[slot] = at;
      at += (groups[slot].n + 3u) / 4u;
    }
    starts[SLOTS] = at;
    // Tiers of 32, 16 and 8 bits come first.
    table[to] = vec4(at, starts[3u * SEGMENTS], 0u, 0u);
  }
  workgroupBarrier();
  for (var block = lane; block < starts[SLOTS]; block += 64u) {
    // The last group that begins there or before has the block: those without blocks begin where the next one does.
    var slot = 0u;
    for (var step = SLOTS / 2u; step > 0u; step /= 2u) { slot += select(0u, step, starts[slot + step] <= block); }
    let g = groups[slot];
    let b = block - starts[slot];
    let record = slot % SEGMENTS;
    let kScale = records[record] * 4u + (g.kScale + b * 4u * scaleBytes(g.kBits)) / 4u;
    let vScale = records[record] * 4u + (g.vScale + b * 4u * scaleBytes(g.vBits)) / 4u;
    table[to + 1u + SEGMENTS + block] = vec4(
      (g.k + b * blockVectors(g.kBits)) | (nibbleOf(g.kBits) << 27u),
      (g.v + b * blockVectors(g.vBits)) | (nibbleOf(g.vBits) << 27u),
      kScale,
      (vScale - kScale) | ((cells[slot] + b * 4u) << 8u) | (min(3u, g.n - b * 4u - 1u) << 21u) | (record << 23u));
  }
}
