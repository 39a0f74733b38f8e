// As attend.wgsl, for heads of 64 or 128 channels: attention of one query row and kvHead over one split, whose cells are worked on all at once, so
// that few barriers part the phases and loads of many blocks are under way. One workgroup of WARPS * 32 lanes, at most SEGMENTS segments:
//   (1) a lane reads a record's header and finds where each of its tiers lies; groups of all records are put in one order, tier by tier;
//   (2) a lane finds its blocks of 4 tokens in that order and sends for their scales;
//   (3) scores: LANES lanes take a block, 16 channels each, the next block's codes under way;
//   (4) weights exp(score - maximum);
//   (5) weighted values, a lane the same 16 channels: first blocks of codes of 1 to 4 bits, then those of floats and of 8 bits.
// Codes are multiplied as the integers that they stand for (dot4I8Packed, exact): queries have 8 bits a channel (15 if FINE, and for keys of 8 bits), relative
// to their largest; the weights of a block of 4 tokens 7 bits relative to its largest, times a power of two. So it is in the WebAssembly kernels, too.
// `// each $x` ... `// end $x` stands for its lines once for each x (webgpu-prelude.ts, unroll): heads h < GROUP, pairs of chunks p < 2, chunks c < 4,
// blocks j < OWN that a lane finds.
//
// A row's result does not depend on the other rows: splits follow from the cells alone, and unseen cells weigh nothing.
//
// Dispatch [splits, KV_HEADS, rows].

const WIDTH = WARPS * 32u;
const MAX_BLOCKS = SEGMENTS * MAX_CELLS / 4u;
const LANES = HEAD_DIM / 16u;
const TEAMS = WIDTH / LANES;
/// 16-byte vectors of a half block of 4 bits: 8 channels each.
const VECS = HEAD_DIM / 8u;
/// 15-bit integers: 256 * a signed byte + another.
const FINE_MOST = 32512.0;
const PLACE = 0x7ffffffu;
/// An integer added to these bits is added to this float.
const MAGIC = 0x4b400000;
const MAGIC_FLOAT = 12582912.0;
/// The first tier whose values are codes of 1 to 4 bits: 32, 16 and 8 bits come before.
const FIRST_CODED = 3u;
/// A tier's tokens of all records, [tier][record].
const SLOTS = 16u * SEGMENTS;
const PER_LANE = SLOTS / 32u;

/// [pair of codes][replica]: levels of both as bytes 0 and 2. 4 bits from entry 0, 3 bits from entry 256 on.
var<workgroup> lut: array<u32, 320u * REPLICAS>;
/// [block][head][token]; of blocks with values of 8, 16 and 32 bits then their weights. At the end, outputs on their way from warp to warp.
var<workgroup> scores: array<f32, max(MAX_BLOCKS * GROUP * 4u, WARPS * GROUP * HEAD_DIM)>;
/// [block][head]: weights of 4 tokens as bytes, and what an integer sum of theirs is multiplied by.
var<workgroup> weights: array<vec2<u32>, MAX_BLOCKS * GROUP>;
/// [block]: places of keys and values in units of 16 bytes, each with its bits' nibble (1..4, 8; 9 and 10 for 16 and 32) from bit 27 on; bit 31 of both:
/// the number of tokens less 1.
var<workgroup> blocks: array<vec2<u32>, MAX_BLOCKS>;
/// [tier][record]: first keys, first values (units of 16 bytes), scales of the keys, of the values (words).
var<workgroup> groups: array<vec4<u32>, SLOTS>;
/// [tier][record]: tokens; the record's first cell of that tier from bit 8 on.
var<workgroup> sizes: array<u32, SLOTS>;
/// [tier][record]: the first block in the order of all.
var<workgroup> starts: array<u32, SLOTS>;
/// [record]: word of the mean; bases of scales, binary16, keys' below; scale of the mean.
var<workgroup> records: array<vec3<u32>, SEGMENTS>;
/// The queries, scaled: floats, and integers (high and low bytes of channels 0, 1, 4, 5 and of 2, 3, 6, 7 of a vector).
var<workgroup> qFloat: array<vec4<f32>, GROUP * VECS * 2u>;
var<workgroup> qInteger: array<vec4<u32>, GROUP * VECS>;
/// [head]: what an integer of a query stands for.
var<workgroup> qStep: array<f32, GROUP>;
/// [record][head]: the query times the segment's mean.
var<workgroup> qMean: array<f32, SEGMENTS * GROUP>;
var<workgroup> perWarp: array<f32, 2u * GROUP * WARPS>;

fn bytes(word: u32) -> vec4<f32> {
  return vec4<f32>(vec4<i32>(vec4(word << 24u, word << 16u, word << 8u, word)) >> vec4(24u));
}
fn halves(a: u32, b: u32) -> vec4<f32> { return vec4(unpack2x16float(a), unpack2x16float(b)); }
fn pack4(x: vec4<i32>) -> u32 {
  let b = bitcast<vec4<u32>>(x) & vec4(255u);
  return b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);
}
/// Bytes that 4 integers within -FINE_MOST..FINE_MOST are: high ones, low ones.
fn split4(x: vec4<i32>) -> vec2<u32> {
  let low = ((x + vec4(128)) & vec4(255)) - vec4(128);
  return vec2(pack4((x - low) >> vec4(8u)), pack4(low));
}

/// What entry of `lut` stands for which levels.
fn pairOf(entry: u32) -> u32 {
  if (entry < 256u) { return byteOf(LEVELS_4, entry & 15u) | (byteOf(LEVELS_4, entry >> 4u) << 16u); }
  // Two bits of both codes, then the third of both.
  let first = (entry & 3u) | ((entry >> 2u) & 4u);
  let second = ((entry >> 2u) & 3u) | ((entry >> 3u) & 4u);
  return byteOf(LEVELS_3, first) | (byteOf(LEVELS_3, second) << 16u);
}
/// A byte of up to 16, 4 in each word.
fn byteOf(four: vec4<u32>, code: u32) -> u32 {
  let word = select(select(four.x, four.y, code >= 4u), select(four.z, four.w, code >= 12u), code >= 8u);
  return (word >> ((code & 3u) * 8u)) & 255u;
}
/// Levels of a word's 4 pairs: bytes (0 low, 1 low, 0 high, 1 high), then 2 and 3; "low" is the code in the lower bits.
fn levels(pairs: u32, base: u32) -> vec2<u32> {
  let a = lut[((pairs << LOG_REPLICAS) & PAIR_MASK) | base];
  let b = lut[((pairs >> (8u - LOG_REPLICAS)) & PAIR_MASK) | base];
  let c = lut[((pairs >> (16u - LOG_REPLICAS)) & PAIR_MASK) | base];
  let d = lut[((pairs >> (24u - LOG_REPLICAS)) & PAIR_MASK) | base];
  return vec2(b * 256u + a, d * 256u + c);
}
const PAIR_MASK = 255u << LOG_REPLICAS;
const LUT_3 = 256u << LOG_REPLICAS;
/// Codes of 2 bits in the lowest bits of the bytes as 0, 7, 13, 20: a quarter of the level, plus 10.
fn two(s: u32) -> u32 { return (((s & 0x03030303u) * 27u + 0x01010101u) >> 2u) & 0x3f3f3f3fu; }
/// Of 1 bit as 0, 80: the level, plus 40.
fn one(s: u32) -> u32 { return (s & 0x01010101u) * 80u; }
/// Words of two chunks, ordered as `levels` does; and back.
fn inPairs(a: u32, b: u32) -> vec2<u32> { return vec2((a & 0xffffu) | (b << 16u), (a >> 16u) | (b & 0xffff0000u)); }
fn dots(a: vec4<u32>, b: u32) -> vec4<i32> {
  return vec4(dot4I8Packed(a.x, b), dot4I8Packed(a.y, b), dot4I8Packed(a.z, b), dot4I8Packed(a.w, b));
}

fn nibbleOf(bits: u32) -> u32 { return select(bits, select(9u, 10u, bits == 32u), bits > 8u); }
/// The vectors that hold a lane's channels: 8-channel pairs of chunks `pair` and `pair + 1` of a half block; of more, the first two.
fn firstVector(half: u32, sub: u32) -> u32 {
  let nibble = (half >> 27u) & 15u;
  // 8 bits: 4 vectors a lane, 16: 2 a token, 4: 2, 3 and 2: 1, 1: half a vector.
  let at = select(select(select(sub * 2u, sub * 4u, nibble == 8u), sub, nibble == 2u || nibble == 3u), sub / 2u, nibble == 1u);
  return (half & PLACE) + at;
}
fn secondVector(half: u32, sub: u32, first: u32) -> u32 {
  let nibble = (half >> 27u) & 15u;
  // Vectors of the third bit of 3-bit codes come behind those of the lower two.
  let third = (half & PLACE) + LANES + sub / 2u;
  return select(select(first + 1u, third, nibble == 3u), first, nibble < 3u);
}
/// Pairs of codes of 3 bits.
fn threes(low: vec4<u32>, high: vec4<u32>, pair: u32, sub: u32) -> vec4<u32> {
  return ((low >> vec4(pair * 4u)) & vec4(0x0f0f0f0fu)) | (((high >> vec4((sub & 1u) * 4u + pair * 2u)) & vec4(0x03030303u)) << vec4(4u));
}

/// 16 channels of a token in a float half, as 4 chunks. `bits` 16 or 32; `place` in vectors of the cache.
struct Floats { c0: vec4<f32>, c1: vec4<f32>, c2: vec4<f32>, c3: vec4<f32> }
fn floats16(first: vec4<u32>, second: vec4<u32>) -> Floats {
  return Floats(halves(first.x, first.y), halves(first.z, first.w), halves(second.x, second.y), halves(second.z, second.w));
}
fn floats(nibble: u32, place: u32, token: u32, sub: u32) -> Floats {
  if (nibble == 9u) {
    let at = place + token * VECS + sub * 2u;
    return floats16(cache[at], cache[at + 1u]);
  }
  let at = place + token * 2u * VECS + sub * 4u;
  return Floats(bitcast<vec4<f32>>(cache[at]), bitcast<vec4<f32>>(cache[at + 1u]), bitcast<vec4<f32>>(cache[at + 2u]), bitcast<vec4<f32>>(cache[at + 3u]));
}
/// 4 scales from their words.
fn scales(code: vec2<u32>, nibble: u32, base: f32) -> vec4<f32> {
  if (nibble == 8u) { return halves(code.x, code.y); }
  return scalesOf(fourBytes(code.x), nibble, base);
}
fn fourScores(at: u32) -> vec4<f32> { return vec4(scores[at * 4u], scores[at * 4u + 1u], scores[at * 4u + 2u], scores[at * 4u + 3u]); }

/// (1) of record r.
fn layOut(split: Split, r: u32, kvHead: u32) {
  let block = segments[split.first + r];
  let tokens = words[block * 4u + 1u];
  let offset = words[block * 4u + 3u + kvHead];
  let record = block + offset / 16u;
  let first = cache[record];
  let counts = vec3(first.z, first.w, cache[record + 1u].x);
  // A head without a record: the segment's own first bytes, with no tier present.
  let present = select(first.x & 0xffffu, 0u, offset == 0u);
  let parts = partsOf(present, counts, tokens);
  records[r] = vec3(record * 4u + parts.mean / 4u, (first.x >> 16u) | (first.y << 16u), first.y >> 16u);
  var scaleAt = parts.scales;
  var codeAt = record + parts.codes;
  var cell = 0u;
  var left = present;
  let kinds = countOneBits(present);
  for (var i = 0u; i < kinds; i++) {
    let tier = firstTrailingBit(left);
    left &= left - 1u;
    let n = countOf(counts, i);
    let g = groupAt(tier, n, scaleAt, codeAt);
    let slot = tier * SEGMENTS + r;
    groups[slot] = vec4(g.k, g.v, record * 4u + g.kScale / 4u, record * 4u + g.vScale / 4u);
    sizes[slot] = n | (cell << 8u);
    cell += pad4(n);
    scaleAt = g.scaleEnd;
    codeAt = g.codeEnd;
  }
}

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let split = splits[id.x];
  let item = items[split.item];
  let kvHead = id.y;
  let row = id.z;
  let warp = lane / 32u;
  let own = lane & 31u;
  let replica = lane & (REPLICAS - 1u);
  let exact = split.count == 0u;
  let sub = lane % LANES;
  let team = lane / LANES;

  for (var i = lane; i < SLOTS; i += WIDTH) { sizes[i] = 0u; }
  // A warp makes a head's integers, a lane a vector's.
  for (var turn = 0u; turn < (GROUP + WARPS - 1u) / WARPS; turn++) {
    let head = min(turn * WARPS + warp, GROUP - 1u);
    var a = vec4<f32>();
    var b = vec4<f32>();
    if (own < VECS) {
      let at = split.q + (row * HEADS + kvHead * GROUP + head) * HEAD_DIM + own * 8u;
      a = params.scale * vec4(queries[at], queries[at + 1u], queries[at + 2u], queries[at + 3u]);
      b = params.scale * vec4(queries[at + 4u], queries[at + 5u], queries[at + 6u], queries[at + 7u]);
    }
    let m = max(abs(a), abs(b));
    let largest = maximumOf(max(max(m.x, m.y), max(m.z, m.w)), lane);
    let inverse = select(FINE_MOST / largest, 0.0, largest < 1e-30);
    if (own < VECS) {
      let x = split4(vec4<i32>(round(vec4(a.x, a.y, b.x, b.y) * inverse)));
      let y = split4(vec4<i32>(round(vec4(a.z, a.w, b.z, b.w) * inverse)));
      qInteger[head * VECS + own] = vec4(x, y);
      qFloat[(head * VECS + own) * 2u] = a;
      qFloat[(head * VECS + own) * 2u + 1u] = b;
    }
    if (own == 0u) { qStep[head] = largest / FINE_MOST; }
  }
  workgroupBarrier();
  if (lane < split.count) { layOut(split, lane, kvHead); }
  if (!exact) {
    for (var entry = lane; entry < 320u; entry += WIDTH) {
      let pair = pairOf(entry);
      for (var r = 0u; r < REPLICAS; r++) { lut[(entry << LOG_REPLICAS) + ((r + lane) & (REPLICAS - 1u))] = pair; }
    }
  }
  workgroupBarrier();

  // Where groups begin, and how many blocks there are: every warp finds it.
  var here = 0u;
  for (var i = 0u; i < PER_LANE; i++) { here += ((sizes[own * PER_LANE + i] & 255u) + 3u) / 4u; }
  var total = here;
  var before = 0u;
  for (var mask = 1u; mask < 32u; mask *= 2u) {
    let other = swapU(vec2(total, 0u), lane, mask).x;
    before += select(0u, other, (own & mask) != 0u);
    total += other;
  }
  if (warp == 0u) {
    for (var i = 0u; i < PER_LANE; i++) {
      starts[own * PER_LANE + i] = before;
      before += ((sizes[own * PER_LANE + i] & 255u) + 3u) / 4u;
    }
  }
  // A piece of the exact part reads as one group of floats.
  let seen = min(split.to, max(item.visible + row, split.first) - split.first);
  let hidden = select(0u, split.from_, exact);
  let mostCells = select(SEGMENTS * MAX_CELLS, split.to, exact);
  let count = select(total, (seen + 3u) / 4u, exact);
  // A lane without a block repeats the last one, unheard.
  let lastBlock = max(count, 1u) - 1u;
  // The queries times the means, a lane 8 channels.
  for (var first = 0u; first < SEGMENTS; first += WIDTH / VECS) {
    let r = first + lane / VECS;
    let v = lane % VECS;
    let heard = r < split.count;
    var x = vec2<u32>();
    var step = 0.0;
    if (heard) {
      let record = records[r];
      x = inPairs(words[record.x + v * 2u], words[record.x + v * 2u + 1u]);
      step = unpack2x16float(record.z).x;
    }
    // each $h
    {
      let q = qInteger[$hu * VECS + v];
      var sum = f32((dot4I8Packed(x.x, q.x) + dot4I8Packed(x.y, q.z)) * 256 + dot4I8Packed(x.x, q.y) + dot4I8Packed(x.y, q.w));
      for (var mask = VECS / 2u; mask > 0u; mask /= 2u) { sum += swap1(sum, lane, mask); }
      if (heard && v == 0u) { qMean[r * GROUP + $hu] = sum * (step * qStep[$hu]); }
    }
    // end $h
  }
  workgroupBarrier();

  // (2) Of this lane's block j: words of scales; tokens less 1, record (bit 2), nibbles of keys (6) and values (10), cell among the split's (14).
  // each $j
  var k$j = vec2<u32>();
  var v$j = vec2<u32>();
  var info$j = 0u;
  {
    let block = $ju * WIDTH + lane;
    if (block < count) {
      var n = seen - block * 4u;
      var nibbles = vec2(nibbleOf(item.exactBits));
      var at = vec2(exactAt(item, kvHead, split.first) + block * blockVectors(item.exactBits));
      at.y += exactHalf(item);
      var record = 0u;
      var cell = block * 4u;
      if (!exact) {
        // The last group that begins there or before has the block: those without blocks begin where the next one does.
        var slot = 0u;
        for (var step = SLOTS / 2u; step > 0u; step /= 2u) { slot += select(0u, step, starts[slot + step] <= block); }
        let g = groups[slot];
        let b = block - starts[slot];
        let tier = slot / SEGMENTS;
        let bits = vec2(kBitsOf(tier), vBitsOf(tier));
        n = (sizes[slot] & 255u) - b * 4u;
        nibbles = vec2(nibbleOf(bits.x), nibbleOf(bits.y));
        at = g.xy + b * vec2(blockVectors(bits.x), blockVectors(bits.y));
        record = slot % SEGMENTS;
        cell = record * MAX_CELLS + (sizes[slot] >> 8u) + b * 4u;
        let scaleAt = g.zw + b * vec2(scaleBytes(bits.x), scaleBytes(bits.y));
        if (bits.x <= 8u) { k$j.x = words[scaleAt.x]; }
        if (bits.x == 8u) { k$j.y = words[scaleAt.x + 1u]; }
        if (bits.y <= 8u) { v$j.x = words[scaleAt.y]; }
        if (bits.y == 8u) { v$j.y = words[scaleAt.y + 1u]; }
      }
      let less1 = min(n, 4u) - 1u;
      blocks[block] = at | (nibbles << vec2(27u)) | vec2((less1 & 1u) << 31u, (less1 >> 1u) << 31u);
      info$j = less1 | (record << 2u) | (nibbles.x << 6u) | (nibbles.y << 10u) | (cell << 14u);
    }
  }
  // end $j
  // each $h
  // each $p
  let q$h_$p = qInteger[$hu * VECS + sub * 2u + $pu];
  // end $p
  let step$h = qStep[$hu];
  // end $h
  workgroupBarrier();

  // (3) The token of a block that a lane keeps when scores are summed.
  let upper = (sub & (LANES / 2u)) != 0u;
  let odd = (sub & (LANES / 4u)) != 0u;
  let token = select(0u, 2u, upper) + select(0u, 1u, odd);
  if (KEYS) {
    var next = blocks[min(team, lastBlock)].x;
    var at = firstVector(next, sub);
    var next0 = cache[at];
    var next1 = cache[secondVector(next, sub, at)];
    for (var first = 0u; first < stepsOf(count, MAX_BLOCKS); first += TEAMS) {
      let d = next;
      let raw0 = next0;
      let raw1 = next1;
      if (first + TEAMS < count) {
        next = blocks[min(first + TEAMS + team, lastBlock)].x;
        at = firstVector(next, sub);
        next0 = cache[at];
        next1 = cache[secondVector(next, sub, at)];
      }
      let nibble = (d >> 27u) & 15u;
      // each $h
      var x$h: vec4<f32>;
      // end $h
      if (nibble <= 4u) {
        // Words of the 4 tokens: channels 0, 1, 4, 5 and 2, 3, 6, 7 of a pair of chunks.
        // each $p
        var a$p: vec4<u32>;
        var b$p: vec4<u32>;
        // end $p
        var offset = 0;
        var factor = 1.0;
        if (nibble >= 3u) {
          let base = select(LUT_3, 0u, nibble == 4u) | replica;
          // each $p
          {
            var index = raw$p;
            if (nibble == 3u) { index = threes(raw0, raw1, $pu, sub); }
            let t0 = levels(index.x, base);
            let t1 = levels(index.y, base);
            let t2 = levels(index.z, base);
            let t3 = levels(index.w, base);
            a$p = vec4(t0.x, t1.x, t2.x, t3.x);
            b$p = vec4(t0.y, t1.y, t2.y, t3.y);
          }
          // end $p
        } else {
          offset = select(-40, -10, nibble == 2u);
          factor = select(1.0, 4.0, nibble == 2u);
          // each $p
          {
            var t0: vec2<u32>;
            var t1: vec2<u32>;
            var t2: vec2<u32>;
            var t3: vec2<u32>;
            if (nibble == 2u) {
              let s = raw0 >> vec4($pu * 4u);
              t0 = inPairs(two(s.x), two(s.x >> 2u));
              t1 = inPairs(two(s.y), two(s.y >> 2u));
              t2 = inPairs(two(s.z), two(s.z >> 2u));
              t3 = inPairs(two(s.w), two(s.w >> 2u));
            } else {
              let s = raw0 >> vec4((sub & 1u) * 4u + $pu * 2u);
              t0 = inPairs(one(s.x), one(s.x >> 1u));
              t1 = inPairs(one(s.y), one(s.y >> 1u));
              t2 = inPairs(one(s.z), one(s.z >> 1u));
              t3 = inPairs(one(s.w), one(s.w >> 1u));
            }
            a$p = vec4(t0.x, t1.x, t2.x, t3.x);
            b$p = vec4(t0.y, t1.y, t2.y, t3.y);
          }
          // end $p
        }
        // each $h
        {
          var high = vec4(MAGIC);
          if (offset != 0) {
            var q = 0;
            // each $p
            q += dot4I8Packed(q$h_$p.x, 0x01010101u) + dot4I8Packed(q$h_$p.z, 0x01010101u);
            // end $p
            high += vec4(offset * q);
          }
          // each $p
          high += dots(a$p, q$h_$p.x);
          high += dots(b$p, q$h_$p.z);
          // end $p
          x$h = (bitcast<vec4<f32>>(high) - MAGIC_FLOAT) * 256.0;
          if (FINE) {
            var low = vec4(MAGIC);
            if (offset != 0) {
              var q = 0;
              // each $p
              q += dot4I8Packed(q$h_$p.y, 0x01010101u) + dot4I8Packed(q$h_$p.w, 0x01010101u);
              // end $p
              low += vec4(offset * q);
            }
            // each $p
            low += dots(a$p, q$h_$p.y);
            low += dots(b$p, q$h_$p.w);
            // end $p
            x$h += bitcast<vec4<f32>>(low) - MAGIC_FLOAT;
          }
          x$h *= factor;
        }
        // end $h
      } else if (nibble == 8u) {
        let raw2 = cache[(d & PLACE) + sub * 4u + 2u];
        let raw3 = cache[(d & PLACE) + sub * 4u + 3u];
        let a0 = (raw0 & vec4(0xffffu)) | (raw1 << vec4(16u));
        let b0 = (raw0 >> vec4(16u)) | (raw1 & vec4(0xffff0000u));
        let a1 = (raw2 & vec4(0xffffu)) | (raw3 << vec4(16u));
        let b1 = (raw2 >> vec4(16u)) | (raw3 & vec4(0xffff0000u));
        // each $h
        {
          var high = vec4<i32>();
          var low = vec4<i32>();
          // each $p
          high += dots(a$p, q$h_$p.x) + dots(b$p, q$h_$p.z);
          low += dots(a$p, q$h_$p.y) + dots(b$p, q$h_$p.w);
          // end $p
          x$h = vec4<f32>(high * 256 + low);
        }
        // end $h
      } else {
        var t0: Floats;
        if (nibble == 9u) { t0 = floats16(raw0, raw1); } else { t0 = floats(nibble, d & PLACE, 0u, sub); }
        let t1 = floats(nibble, d & PLACE, 1u, sub);
        let t2 = floats(nibble, d & PLACE, 2u, sub);
        let t3 = floats(nibble, d & PLACE, 3u, sub);
        // each $h
        {
          let at = ($hu * VECS + sub * 2u) * 2u;
          let q0 = qFloat[at];
          let q1 = qFloat[at + 1u];
          let q2 = qFloat[at + 2u];
          let q3 = qFloat[at + 3u];
          x$h = vec4(
            dot(q0, t0.c0) + dot(q1, t0.c1) + dot(q2, t0.c2) + dot(q3, t0.c3),
            dot(q0, t1.c0) + dot(q1, t1.c1) + dot(q2, t1.c2) + dot(q3, t1.c3),
            dot(q0, t2.c0) + dot(q1, t2.c1) + dot(q2, t2.c2) + dot(q3, t2.c3),
            dot(q0, t3.c0) + dot(q1, t3.c1) + dot(q2, t3.c2) + dot(q3, t3.c3));
        }
        // end $h
      }
      let block = first + team;
      let writes = block < count && (sub & (LANES / 4u - 1u)) == 0u;
      // each $h
      {
        // Sums over the lanes of a block; each lane keeps one token.
        let pair = select(x$h.xy, x$h.zw, upper) + swap2(select(x$h.zw, x$h.xy, upper), lane, LANES / 2u);
        var x = select(pair.x, pair.y, odd) + swap1(select(pair.y, pair.x, odd), lane, LANES / 4u);
        for (var mask = LANES / 8u; mask > 0u; mask /= 2u) { x += swap1(x, lane, mask); }
        if (writes) { scores[(block * GROUP + $hu) * 4u + token] = x; }
      }
      // end $h
    }
  }
  workgroupBarrier();

  // (4)
  // each $h
  var largest$h = NEVER;
  var sum$h = 0.0;
  // end $h
  let scoreRow = (row * HEADS + kvHead * GROUP) * params.scoreStride + split.scores;
  // each $j
  // each $h
  var s$j_$h = vec4(NEVER);
  // end $h
  {
    let block = $ju * WIDTH + lane;
    if (block < count) {
      let nibble = (info$j >> 6u) & 15u;
      let record = (info$j >> 2u) & 15u;
      let less1 = info$j & 3u;
      var scale = vec4(1.0);
      if (nibble <= 8u) { scale = scales(k$j, nibble, unpack2x16float(records[record].y).x); }
      // each $h
      {
        var x = fourScores(block * GROUP + $hu);
        if (nibble <= 8u) { x = x * (scale * step$h) + qMean[record * GROUP + $hu]; }
        let cells = vec4(0u, 1u, 2u, 3u) + block * 4u;
        x = select(x, vec4(NEVER), (cells > vec4(block * 4u + less1)) | (cells < vec4(hidden)));
        s$j_$h = x;
        largest$h = max(largest$h, max(max(x.x, x.y), max(x.z, x.w)));
        if (params.scoreStride > 0u) {
          let first = info$j >> 14u;
          let to = scoreRow + $hu * params.scoreStride + first;
          for (var c = 0u; c < 4u; c++) {
            if (first + c >= hidden && first + c < mostCells) { scoresOut[to + c] = x[c]; }
          }
        }
      }
      // end $h
    }
  }
  // end $j
  // each $h
  largest$h = maximumOf(largest$h, lane);
  if (own == 0u) { perWarp[$hu * WARPS + warp] = largest$h; }
  // end $h
  var base = 1e-30;
  for (var r = 0u; r < split.count; r++) { base = max(base, unpack2x16float(records[r].y).y); }
  // Scales of codes of 1 to 4 bits do not exceed those of 4, so that no weight exceeds FINE_MOST, nor 1,024 times 63 of them an i32.
  let unit = base * UNIT_INVERSE_4 / FINE_MOST;
  workgroupBarrier();
  // each $h
  for (var w = 0u; w < WARPS; w++) { largest$h = max(largest$h, perWarp[$hu * WARPS + w]); }
  // end $h
  // each $j
  {
    let block = $ju * WIDTH + lane;
    if (block < count) {
      let nibble = (info$j >> 10u) & 15u;
      let record = (info$j >> 2u) & 15u;
      var scale = vec4(1.0);
      if (nibble <= 8u) { scale = scales(v$j, nibble, unpack2x16float(records[record].y).y); }
      // each $h
      {
        let x = s$j_$h;
        let p = select(exp(x - largest$h), vec4(0.0), x <= vec4(NEVER));
        sum$h += (p.x + p.y) + (p.z + p.w);
        let w = p * scale;
        if (nibble <= 4u) {
          let most = max(max(w.x, w.y), max(w.z, w.w)) / unit;
          // So many lower bits do not fit into 7.
          let shift = max(bitcast<u32>(most) >> 23u, 133u) - 133u;
          let small = bitcast<f32>((127u - shift) << 23u) / unit;
          let m = pack4(min(vec4<i32>(round(w * small)), vec4(127)));
          weights[block * GROUP + $hu] = vec2(m, select(1u, 4u, nibble == 2u) << shift);
        } else {
          let at = (block * GROUP + $hu) * 4u;
          scores[at] = w.x;
          scores[at + 1u] = w.y;
          scores[at + 2u] = w.z;
          scores[at + 3u] = w.w;
        }
      }
      // end $h
    }
  }
  // end $j
  // each $h
  sum$h = sumOf(sum$h, lane);
  if (own == 0u) { perWarp[(GROUP + $hu) * WARPS + warp] = sum$h; }
  // end $h
  workgroupBarrier();

  // (5)
  let firstCoded = select(starts[FIRST_CODED * SEGMENTS], count, exact);
  // each $h
  // each $c
  var out$h_$c = vec4<f32>();
  // end $c
  // end $h
  if (VALUES && firstCoded < count) {
    // each $h
    // each $c
    var sum$h_$c = vec4<i32>();
    // end $c
    // end $h
    var next = blocks[min(firstCoded + team, lastBlock)].y;
    var at = firstVector(next, sub);
    var next0 = cache[at];
    var next1 = cache[secondVector(next, sub, at)];
    for (var block = firstCoded + team; block < count; block += TEAMS) {
      let d = next;
      let raw0 = next0;
      let raw1 = next1;
      if (block + TEAMS < count) {
        next = blocks[block + TEAMS].y;
        at = firstVector(next, sub);
        next0 = cache[at];
        next1 = cache[secondVector(next, sub, at)];
      }
      let nibble = (d >> 27u) & 15u;
      // each $h
      let w$h = weights[block * GROUP + $hu];
      let times$h = bitcast<i32>(w$h.y);
      // end $h
      // each $c
      var c$c: vec4<u32>;
      // end $c
      var offset = 0;
      if (nibble >= 3u) {
        let base = select(LUT_3, 0u, nibble == 4u) | replica;
        var index = raw0;
        if (nibble == 3u) { index = threes(raw0, raw1, 0u, sub); }
        let t0 = levels(index.x, base);
        let t1 = levels(index.y, base);
        let t2 = levels(index.z, base);
        let t3 = levels(index.w, base);
        c0 = vec4(inPairs(t0.x, t0.y).x, inPairs(t1.x, t1.y).x, inPairs(t2.x, t2.y).x, inPairs(t3.x, t3.y).x);
        c1 = vec4(inPairs(t0.x, t0.y).y, inPairs(t1.x, t1.y).y, inPairs(t2.x, t2.y).y, inPairs(t3.x, t3.y).y);
        index = raw1;
        if (nibble == 3u) { index = threes(raw0, raw1, 1u, sub); }
        let u0 = levels(index.x, base);
        let u1 = levels(index.y, base);
        let u2 = levels(index.z, base);
        let u3 = levels(index.w, base);
        c2 = vec4(inPairs(u0.x, u0.y).x, inPairs(u1.x, u1.y).x, inPairs(u2.x, u2.y).x, inPairs(u3.x, u3.y).x);
        c3 = vec4(inPairs(u0.x, u0.y).y, inPairs(u1.x, u1.y).y, inPairs(u2.x, u2.y).y, inPairs(u3.x, u3.y).y);
      } else if (nibble == 2u) {
        offset = -10;
        // each $c
        c$c = vec4(two(raw0.x >> ($cu * 2u)), two(raw0.y >> ($cu * 2u)), two(raw0.z >> ($cu * 2u)), two(raw0.w >> ($cu * 2u)));
        // end $c
      } else {
        offset = -40;
        let s = raw0 >> vec4((sub & 1u) * 4u);
        // each $c
        c$c = vec4(one(s.x >> $cu), one(s.y >> $cu), one(s.z >> $cu), one(s.w >> $cu));
        // end $c
      }
      // each $h
      {
        let bias = vec4(offset * dot4I8Packed(w$h.x, 0x01010101u));
        // each $c
        sum$h_$c += times$h * (bias + dots(c$c, w$h.x));
        // end $c
      }
      // end $h
    }
    // each $h
    // each $c
    out$h_$c = unit * vec4<f32>(sum$h_$c);
    // end $c
    // end $h
  }
  for (var block = team; VALUES && block < firstCoded; block += TEAMS) {
    let d = blocks[block];
    let nibble = (d.y >> 27u) & 15u;
    let place = d.y & PLACE;
    // each $h
    let w$h = fourScores(block * GROUP + $hu);
    // end $h
    if (nibble == 8u) {
      // each $c
      {
        let v = cache[place + sub * 4u + $cu];
        let x0 = bytes(v.x);
        let x1 = bytes(v.y);
        let x2 = bytes(v.z);
        let x3 = bytes(v.w);
        // each $h
        out$h_$c += vec4(dot(w$h, x0), dot(w$h, x1), dot(w$h, x2), dot(w$h, x3));
        // end $h
      }
      // end $c
    } else {
      let less1 = (d.x >> 31u) | ((d.y >> 31u) << 1u);
      var t0 = floats(nibble, place, 0u, sub);
      var t1 = floats(nibble, place, 1u, sub);
      var t2 = floats(nibble, place, 2u, sub);
      var t3 = floats(nibble, place, 3u, sub);
      // What lies past the written slots may be no number.
      if (less1 < 3u) {
        t3 = Floats();
        if (less1 < 2u) { t2 = Floats(); }
        if (less1 < 1u) { t1 = Floats(); }
      }
      // each $h
      // each $c
      out$h_$c += w$h.x * t0.c$c + w$h.y * t1.c$c + w$h.z * t2.c$c + w$h.w * t3.c$c;
      // end $c
      // end $h
    }
  }

  // Over the teams of a warp, then over the warps, then to memory. A lane keeps half of its chunks, then half of these.
  let above = (own & 16u) != 0u;
  let right = (own & 8u) != 0u;
  let chunk = select(0u, 2u, above) + select(0u, 1u, right);
  workgroupBarrier();
  // each $h
  {
    let x = select(out$h_0, out$h_2, above) + swap4(select(out$h_2, out$h_0, above), lane, 16u);
    let y = select(out$h_1, out$h_3, above) + swap4(select(out$h_3, out$h_1, above), lane, 16u);
    var z = select(x, y, right) + swap4(select(y, x, right), lane, 8u);
    if (LANES <= 4u) { z += swap4(z, lane, 4u); }
    if ((own & 7u) < LANES) {
      let to = ((warp * GROUP + $hu) * HEAD_DIM) + sub * 16u + chunk * 4u;
      scores[to] = z.x;
      scores[to + 1u] = z.y;
      scores[to + 2u] = z.z;
      scores[to + 3u] = z.w;
    }
  }
  // end $h
  workgroupBarrier();
  for (var i = lane; i < GROUP * HEAD_DIM; i += WIDTH) {
    var x = 0.0;
    for (var w = 0u; w < WARPS; w++) { x += scores[w * GROUP * HEAD_DIM + i]; }
    let to = ((id.x * params.rows + row) * HEADS + kvHead * GROUP + i / HEAD_DIM) * (HEAD_DIM + 2u);
    partials[to + 2u + i % HEAD_DIM] = x;
  }
  // each $h
  if (lane == $hu) {
    var total = 0.0;
    for (var w = 0u; w < WARPS; w++) { total += perWarp[(GROUP + $hu) * WARPS + w]; }
    let to = ((id.x * params.rows + row) * HEADS + kvHead * GROUP + $hu) * (HEAD_DIM + 2u);
    partials[to] = largest$h;
    partials[to + 1u] = total;
  }
  // end $h
}
