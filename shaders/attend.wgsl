// Attention of one query row and kvHead over one split: out = softmax(q K^T) V without the division, and the softmax's maximum and sum,
// for GROUP query heads that read the same cells. One workgroup of 32 lanes; splits are joined by attend-combine.wgsl.
//
// By segment: (1) scores of all cells, LANES lanes for each block of 4 tokens; (2) weights exp(score - maximum); (3) weighted values.
// A row's result does not depend on the other rows: splits follow from the cells alone, and unseen cells weigh nothing.
//
// Dispatch [splits, KV_HEADS, rows].

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cache: array<vec4<u32>>;    // blocks of segments and exact parts
@group(0) @binding(2) var<storage, read> words: array<u32>;          // the same buffer
@group(0) @binding(3) var<storage, read> queries: array<f32>;
@group(0) @binding(4) var<storage, read> items: array<Item>;
@group(0) @binding(5) var<storage, read> splits: array<Split>;
@group(0) @binding(6) var<storage, read> segments: array<u32>;       // starts of segment blocks, in units of 16 bytes
@group(0) @binding(7) var<storage, read_write> partials: array<f32>; // [split, row, head]: maximum, sum, HEAD_DIM values
@group(0) @binding(8) var<storage, read_write> scoresOut: array<f32>; // [row, head, scoreStride]; padding cells NEVER

const MAX_BLOCKS = MAX_CELLS / 4u;
const TEAMS = 32u / LANES;

var<workgroup> lut: array<f32, 1024>;                      // [level of each table][lane]: no two lanes meet in a bank
var<workgroup> scores: array<f32, GROUP * MAX_CELLS>;
var<workgroup> weights: array<vec4<f32>, GROUP * MAX_BLOCKS>;

var<private> q: array<vec4<f32>, 2 * GROUP>;
var<private> acc: array<vec4<f32>, 2 * GROUP>;
var<private> maxima: array<f32, GROUP>;
var<private> sums: array<f32, GROUP>;
/// Of the block at hand: scores of 4 tokens for each head, this lane's channels only.
var<private> s: array<vec4<f32>, GROUP>;
var<private> qMean: array<f32, GROUP>;

/// Levels of 4 codes, at bits 0, 8, 16 and 24 of a word.
fn levels(word: u32, base: u32) -> vec4<f32> {
  return vec4(
    lut[((word << 5u) & 0x1e0u) | base],
    lut[((word >> 3u) & 0x1e0u) | base],
    lut[((word >> 11u) & 0x1e0u) | base],
    lut[((word >> 19u) & 0x1e0u) | base]);
}
fn bytes(word: u32) -> vec4<f32> {
  return vec4<f32>(vec4<i32>(vec4(word << 24u, word << 16u, word << 8u, word)) >> vec4(24u));
}
fn halves(a: u32, b: u32) -> vec4<f32> { return vec4(unpack2x16float(a), unpack2x16float(b)); }

/// This lane's 8 channels of a block of 1 to 4 bits a code: codes of the first 4 in the low nibbles, of the others in the high ones.
fn nibbles(bits: u32, block: u32, sub: u32) -> vec4<u32> {
  switch bits {
    case 4u: { return cache[block + sub]; }
    case 1u: { return ones(cache[block + sub / 4u], sub); }
    case 2u: { return twos(cache[block + sub / 2u], sub); }
    default: {
      return twos(cache[block + sub / 2u], sub) | (ones(cache[block + (CHUNKS + 3u) / 4u + sub / 4u], sub) << vec4(2u));
    }
  }
}
fn twos(v: vec4<u32>, sub: u32) -> vec4<u32> {
  let x = v >> vec4((sub & 1u) * 4u);
  return (x & vec4(0x03030303u)) | ((x << vec4(2u)) & vec4(0x30303030u));
}
fn ones(v: vec4<u32>, sub: u32) -> vec4<u32> {
  let x = v >> vec4((sub & 3u) * 2u);
  return (x & vec4(0x01010101u)) | ((x << vec4(3u)) & vec4(0x10101010u));
}
/// Where the levels of `bits` begin in the table.
fn lutBase(bits: u32, lane: u32) -> u32 {
  let start = select(select(select(LEVELS_1, LEVELS_2, bits == 2u), LEVELS_3, bits == 3u), LEVELS_4, bits == 4u);
  return (lane | (start * 32u)) & 1023u;
}

/// A token's 8 channels of this lane in a float half; zero past HEAD_DIM.
fn floats(bits: u32, at: u32, token: u32, sub: u32) -> array<vec4<f32>, 2> {
  let channel = token * HEAD_DIM + sub * 8u;
  if (HEAD_DIM % 8u == 0u) {
    if (bits == 16u) {
      let v = cache[at + channel / 8u];
      return array(halves(v.x, v.y), halves(v.z, v.w));
    }
    return array(bitcast<vec4<f32>>(cache[at + channel / 4u]), bitcast<vec4<f32>>(cache[at + channel / 4u + 1u]));
  }
  var x = array<vec4<f32>, 2>();
  for (var i = 0u; i < 2u && sub * 8u + i * 4u < HEAD_DIM; i++) {
    if (bits == 16u) {
      let w = at * 4u + channel / 2u + i * 2u;
      x[i] = halves(words[w], words[w + 1u]);
    } else {
      let w = at * 4u + channel + i * 4u;
      x[i] = bitcast<vec4<f32>>(vec4(words[w], words[w + 1u], words[w + 2u], words[w + 3u]));
    }
  }
  return x;
}
/// 4 scales of a block.
fn scales(at: u32, block: u32) -> vec4<f32> {
  let v = cache[at + block / 2u];
  return select(halves(v.x, v.y), halves(v.z, v.w), (block & 1u) == 1u);
}

/// Writes the scores of a group's cells, from cell `cell` on. All lanes take part in every exchange.
fn scoreGroup(g: Group, cell: u32, lane: u32) {
  let sub = lane % LANES;
  let team = lane / LANES;
  let blocks = (g.n + 3u) / 4u;
  let stride = blockVectors(g.kBits);
  let base = lutBase(g.kBits, lane);
  for (var first = 0u; first < blocks; first += TEAMS) {
    let block = first + team;
    if (block < blocks && sub * 8u < HEAD_DIM) {
      let at = g.k + block * stride;
      if (g.kBits <= 8u) {
        let kScale = scales(g.kScale, block);
        if (g.kBits < 8u) {
          let codes = nibbles(g.kBits, at, sub);
          dots(levels(codes.x, base), levels(codes.x >> 4u, base), levels(codes.y, base), levels(codes.y >> 4u, base),
            levels(codes.z, base), levels(codes.z >> 4u, base), levels(codes.w, base), levels(codes.w >> 4u, base));
        } else {
          let a = cache[at + sub * 2u];
          let b = cache[at + min(sub * 2u + 1u, CHUNKS - 1u)];
          dots(bytes(a.x), bytes(b.x), bytes(a.y), bytes(b.y), bytes(a.z), bytes(b.z), bytes(a.w), bytes(b.w));
        }
        for (var h = 0u; h < GROUP; h++) { s[h] = s[h] * kScale + qMean[h]; }
      } else {
        dotFloats(g.kBits, at, sub);
      }
    } else {
      for (var h = 0u; h < GROUP; h++) { s[h] = vec4(0.0); }
    }
    // Sums over the lanes of a block; each lane keeps one token.
    let token = select(0u, 2u, (sub & (LANES / 2u)) != 0u) + select(0u, 1u, (sub & (LANES / 4u)) != 0u);
    for (var h = 0u; h < GROUP; h++) {
      let upper = token >= 2u;
      let two = select(s[h].xy, s[h].zw, upper) + swap2(select(s[h].zw, s[h].xy, upper), lane, LANES / 2u);
      let odd = (token & 1u) == 1u;
      var x = select(two.x, two.y, odd) + swap1(select(two.y, two.x, odd), lane, LANES / 4u);
      for (var mask = LANES / 8u; mask > 0u; mask /= 2u) { x += swap1(x, lane, mask); }
      if (block < blocks && (sub & (LANES / 4u - 1u)) == 0u) {
        scores[h * MAX_CELLS + cell + block * 4u + token] = select(NEVER, x, block * 4u + token < g.n);
      }
    }
  }
}
fn dots(a0: vec4<f32>, b0: vec4<f32>, a1: vec4<f32>, b1: vec4<f32>, a2: vec4<f32>, b2: vec4<f32>, a3: vec4<f32>, b3: vec4<f32>) {
  for (var h = 0u; h < GROUP; h++) {
    let x = q[2u * h];
    let y = q[2u * h + 1u];
    s[h] = vec4(dot(x, a0) + dot(y, b0), dot(x, a1) + dot(y, b1), dot(x, a2) + dot(y, b2), dot(x, a3) + dot(y, b3));
  }
}
fn dotFloats(bits: u32, at: u32, sub: u32) {
  let a = floats(bits, at, 0u, sub);
  let b = floats(bits, at, 1u, sub);
  let c = floats(bits, at, 2u, sub);
  let d = floats(bits, at, 3u, sub);
  dots(a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]);
}

/// Adds a group's weighted values to `acc`.
fn addGroup(g: Group, cell: u32, lane: u32) {
  let sub = lane % LANES;
  if (sub * 8u >= HEAD_DIM) { return; }
  let blocks = (g.n + 3u) / 4u;
  let stride = blockVectors(g.vBits);
  let base = lutBase(g.vBits, lane);
  for (var block = lane / LANES; block < blocks; block += TEAMS) {
    let at = g.v + block * stride;
    let w = cell / 4u + block;
    if (g.vBits <= 8u) {
      let vScale = scales(g.vScale, block);
      if (g.vBits < 8u) {
        let codes = nibbles(g.vBits, at, sub);
        add(w, vScale, levels(codes.x, base), levels(codes.y, base), levels(codes.z, base), levels(codes.w, base),
          levels(codes.x >> 4u, base), levels(codes.y >> 4u, base), levels(codes.z >> 4u, base), levels(codes.w >> 4u, base));
      } else {
        let a = cache[at + sub * 2u];
        let b = cache[at + min(sub * 2u + 1u, CHUNKS - 1u)];
        add(w, vScale, bytes(a.x), bytes(a.y), bytes(a.z), bytes(a.w), bytes(b.x), bytes(b.y), bytes(b.z), bytes(b.w));
      }
    } else {
      for (var t = 0u; t < 4u; t++) {
        // What lies past the written slots may be no number.
        if (block * 4u + t < g.n) {
          let v = floats(g.vBits, at, t, sub);
          for (var h = 0u; h < GROUP; h++) {
            let x = weights[h * MAX_BLOCKS + w][t];
            acc[2u * h] += x * v[0];
            acc[2u * h + 1u] += x * v[1];
          }
        }
      }
    }
  }
}
fn add(w: u32, vScale: vec4<f32>, a0: vec4<f32>, a1: vec4<f32>, a2: vec4<f32>, a3: vec4<f32>,
  b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>) {
  for (var h = 0u; h < GROUP; h++) {
    let x = weights[h * MAX_BLOCKS + w] * vScale;
    acc[2u * h] += vec4(dot(x, a0), dot(x, a1), dot(x, a2), dot(x, a3));
    acc[2u * h + 1u] += vec4(dot(x, b0), dot(x, b1), dot(x, b2), dot(x, b3));
  }
}

/// Scores of `blocks` blocks -> weights; moves the running maximum, sums and values along.
fn weigh(blocks: u32, lane: u32, scoreAt: u32) {
  for (var h = 0u; h < GROUP; h++) {
    var largest = NEVER;
    for (var b = lane; b < blocks; b += 32u) {
      let at = h * MAX_CELLS + b * 4u;
      largest = max(largest, max(max(scores[at], scores[at + 1u]), max(scores[at + 2u], scores[at + 3u])));
    }
    for (var mask = 16u; mask > 0u; mask /= 2u) { largest = max(largest, swap1(largest, lane, mask)); }
    let before = maxima[h];
    largest = max(largest, before);
    maxima[h] = largest;
    let shrink = exp(before - largest);
    acc[2u * h] *= shrink;
    acc[2u * h + 1u] *= shrink;
    var sum = sums[h] * shrink;
    for (var b = lane; b < blocks; b += 32u) {
      let at = h * MAX_CELLS + b * 4u;
      let x = vec4(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
      let w = select(exp(x - largest), vec4(0.0), x <= vec4(NEVER));
      weights[h * MAX_BLOCKS + b] = w;
      sum += (w.x + w.y) + (w.z + w.w);
      if (params.scoreStride > 0u) {
        let to = scoreAt + h * params.scoreStride + b * 4u;
        scoresOut[to] = x.x;
        scoresOut[to + 1u] = x.y;
        scoresOut[to + 2u] = x.z;
        scoresOut[to + 3u] = x.w;
      }
    }
    sums[h] = sum;
  }
}

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let split = splits[id.x];
  let item = items[split.item];
  let kvHead = id.y;
  let row = id.z;
  let sub = lane % LANES;
  let team = lane / LANES;

  fillLut(lane);
  for (var h = 0u; h < GROUP; h++) {
    let at = item.q + (row * HEADS + kvHead * GROUP + h) * HEAD_DIM + sub * 8u;
    q[2u * h] = vec4(0.0);
    q[2u * h + 1u] = vec4(0.0);
    if (sub * 8u < HEAD_DIM) {
      q[2u * h] = params.scale * vec4(queries[at], queries[at + 1u], queries[at + 2u], queries[at + 3u]);
    }
    if (sub * 8u + 4u < HEAD_DIM) {
      q[2u * h + 1u] = params.scale * vec4(queries[at + 4u], queries[at + 5u], queries[at + 6u], queries[at + 7u]);
    }
    acc[2u * h] = vec4(0.0);
    acc[2u * h + 1u] = vec4(0.0);
    maxima[h] = NEVER;
    sums[h] = 0.0;
  }
  workgroupBarrier();

  let scoreRow = (row * HEADS + kvHead * GROUP) * params.scoreStride + split.scores;
  let exact = split.count == 0u;
  for (var i = 0u; i < max(1u, split.count); i++) {
    var counts: vec4<u32>;
    var start: u32;
    if (exact) {
      // A piece of the exact part reads as one group of the tier that holds floats of its width.
      let seen = max(item.visible + row, split.first) - split.first;
      counts = vec4(min(SEGMENT_TOKENS, seen) << select(8u, 0u, item.exactBits == 32u), 0u, 0u, 0u);
      start = 0u;
    } else {
      let block = segments[split.first + i];
      let tokens = words[block * 4u + 1u];
      let record = block + words[block * 4u + 4u + kvHead] / 16u;
      counts = cache[record];
      start = record + groupsAt(tokens);
      let mean = cache[record + meanAt(tokens) + min(sub, (HEAD_DIM - 1u) / 8u)];
      for (var h = 0u; h < GROUP; h++) {
        qMean[h] = dot(q[2u * h], halves(mean.x, mean.y));
        if (sub * 8u + 4u < HEAD_DIM) { qMean[h] += dot(q[2u * h + 1u], halves(mean.z, mean.w)); }
      }
    }
    var cell = 0u;
    var at = start;
    for (var tier = 0u; tier < TIER_COUNT; tier++) {
      let n = countOf(counts, tier);
      if (n > 0u) {
        var g = groupAt(tier, n, at);
        if (exact) { g.k = exactAt(item, kvHead, split.first); }
        scoreGroup(g, cell, lane);
        cell += (n + 3u) & 0xfffffffcu;
        at = g.end;
      }
    }
    workgroupBarrier();
    weigh(cell / 4u, lane, scoreRow + i * MAX_CELLS);
    workgroupBarrier();
    cell = 0u;
    at = start;
    for (var tier = 0u; tier < TIER_COUNT; tier++) {
      let n = countOf(counts, tier);
      if (n > 0u) {
        var g = groupAt(tier, n, at);
        if (exact) { g.v = exactAt(item, kvHead, split.first) + exactHalf(item); }
        addGroup(g, cell, lane);
        cell += (n + 3u) & 0xfffffffcu;
        at = g.end;
      }
    }
  }

  // Over the teams, then to memory.
  for (var h = 0u; h < GROUP; h++) {
    var sum = sums[h];
    for (var mask = 16u; mask > 0u; mask /= 2u) { sum += swap1(sum, lane, mask); }
    var a = acc[2u * h];
    var b = acc[2u * h + 1u];
    for (var mask = 16u; mask >= LANES; mask /= 2u) {
      a += vec4(swap2(a.xy, lane, mask), swap2(a.zw, lane, mask));
      b += vec4(swap2(b.xy, lane, mask), swap2(b.zw, lane, mask));
    }
    let to = ((id.x * params.rows + row) * HEADS + kvHead * GROUP + h) * (HEAD_DIM + 2u);
    if (lane == 0u) {
      partials[to] = maxima[h];
      partials[to + 1u] = sum;
    }
    if (team == 0u) {
      for (var c = 0u; c < 4u; c++) {
        if (sub * 8u + c < HEAD_DIM) { partials[to + 2u + sub * 8u + c] = a[c]; }
        if (sub * 8u + 4u + c < HEAD_DIM) { partials[to + 2u + sub * 8u + 4u + c] = b[c]; }
      }
    }
  }
}
