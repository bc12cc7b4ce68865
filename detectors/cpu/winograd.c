/* 3x3 convolutions by Winograd's minimal filtering F(4x4, 3x3), and their gradients; `winograd.py` tells what it is.

   Images are [image][row][column][channel] (channels-last), float32. A tile is 6x6 inputs or 4x4 outputs; a "position"
   is one of the 36 values that a transformed tile has per channel. Channels are handled a vector at a time. */

#include <omp.h>
#include <stddef.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16, VECTORS = 4 }; /* of 32 registers: 24 sums, a row of four, a factor */
#else
enum { LANES = 8, VECTORS = 2 }; /* of 16 registers: 12 sums, a row of two, a factor */
#endif
enum { ROWS = 6, PANEL = LANES * VECTORS, POSITIONS = 36 };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef ptrdiff_t size;

#define INLINE static inline __attribute__((always_inline))

INLINE size round_up(size value, size to) { return (value + to - 1) / to * to; }
INLINE size least(size a, size b) { return a < b ? a : b; }
/* So many floats and a few more, so that the same place in one position after another falls into one set of a cache
   after another, and not all 36 into one. */
INLINE size spread(size floats) { return round_up(floats, 1024) + LANES; }
INLINE vector load(const float *from) { return *(const vector *)from; }
INLINE void store(float *to, vector value) { *(vector *)to = value; }

/* The first `count` of a vector `step` apart; the others are 0. */
INLINE vector gather(const float *from, size count, size step)
{
    if (count >= LANES && step == 1) return load(from);
    vector found = {0};
    for (size lane = 0; lane < least(count, LANES); lane++) found[lane] = from[lane * step];
    return found;
}

INLINE void store_some(float *to, vector value, size count)
{
    if (count >= LANES) store(to, value);
    else memcpy(to, &value, count * sizeof(float));
}

/* -- transforms: of one line of a tile; `r` and `d` step from one element of the line to the next ------------------ */

INLINE void input(vector *to, int r, const vector *from, int d) /* B', 6 to 6 */
{
    vector d0 = from[0], d1 = from[d], d2 = from[2 * d], d3 = from[3 * d], d4 = from[4 * d], d5 = from[5 * d];
    vector even = d4 - 4 * d2, odd = d3 - 4 * d1, even_half = d4 - d2, odd_half = 2 * (d3 - d1);
    to[0] = 4 * d0 - 5 * d2 + d4;
    to[r] = even + odd;
    to[2 * r] = even - odd;
    to[3 * r] = even_half + odd_half;
    to[4 * r] = even_half - odd_half;
    to[5 * r] = 4 * d1 - 5 * d3 + d5;
}

INLINE void output(vector *to, int r, const vector *from, int d) /* A', 6 to 4 */
{
    vector sum = from[d] + from[2 * d], difference = from[d] - from[2 * d];
    vector sum_half = from[3 * d] + from[4 * d], difference_half = from[3 * d] - from[4 * d];
    to[0] = from[0] + sum + sum_half;
    to[r] = difference + 2 * difference_half;
    to[2 * r] = sum + 4 * sum_half;
    to[3 * r] = difference + 8 * difference_half + from[5 * d];
}

INLINE void output_adjoint(vector *to, int r, const vector *from, int d) /* A, 4 to 6 */
{
    vector y0 = from[0], y1 = from[d], y2 = from[2 * d], y3 = from[3 * d];
    vector even = y0 + y2, odd = y1 + y3, even_half = y0 + 4 * y2, odd_half = 2 * y1 + 8 * y3;
    to[0] = y0;
    to[r] = even + odd;
    to[2 * r] = even - odd;
    to[3 * r] = even_half + odd_half;
    to[4 * r] = even_half - odd_half;
    to[5 * r] = y3;
}

static const float SIXTH = 1.0f / 6;

INLINE void kernel(vector *to, int r, const vector *from, int d) /* G, 3 to 6 */
{
    vector g0 = from[0], g1 = from[d], g2 = from[2 * d];
    vector even = (g0 + g2) * -SIXTH, odd = g1 * SIXTH, even_half = g0 * (SIXTH / 4) + g2 * SIXTH, odd_half = g1 * (SIXTH / 2);
    to[0] = g0 * 0.25f;
    to[r] = even - odd;
    to[2 * r] = even + odd;
    to[3 * r] = even_half + odd_half;
    to[4 * r] = even_half - odd_half;
    to[5 * r] = g2;
}

INLINE void kernel_adjoint(vector *to, int r, const vector *from, int d) /* G', 6 to 3 */
{
    vector sum = from[d] + from[2 * d], difference = from[d] - from[2 * d];
    vector sum_half = from[3 * d] + from[4 * d], difference_half = from[3 * d] - from[4 * d];
    to[0] = from[0] * 0.25f - sum * SIXTH + sum_half * (SIXTH / 4);
    to[r] = difference_half * (SIXTH / 2) - difference * SIXTH;
    to[2 * r] = (sum_half - sum) * SIXTH + from[5 * d];
}

/* A line's transform on all columns of a square of `side`, then on all rows: a square of `found`. */
INLINE void on_both_axes(void (*of_line)(vector *, int, const vector *, int), int side, int found, vector *to,
                         const vector *from)
{
    vector half[36];
    for (int column = 0; column < side; column++) of_line(half + column, side, from + column, side);
    for (int row = 0; row < found; row++) of_line(to + found * row, 1, half + side * row, 1);
}

/* -- tiles of images ------------------------------------------------------------------------------------------------ */

typedef struct {
    size height, width, rows, columns; /* in pixels and in tiles, of one image */
} grid;

typedef struct {
    size image, top, left;
} corner; /* of a tile's outputs */

INLINE grid grid_of(size height, size width)
{
    return (grid){height, width, (height + 3) / 4, (width + 3) / 4};
}

INLINE corner corner_of(const grid *g, size tile)
{
    size in_image = tile % (g->rows * g->columns);
    return (corner){tile / (g->rows * g->columns), in_image / g->columns * 4, in_image % g->columns * 4};
}

/* Some of the channels of images, those of a pixel `pixel` floats after those of the one before. */
typedef struct {
    const float *at;
    size channels, pixel;
} slice;

/* Where the side x side pixels around a tile lie, `border` beyond its outputs; outside of the image are zeros. */
INLINE void pixels_of(const grid *g, size tile, int side, int border, slice images, const float *zeros,
                      const float **found)
{
    corner at = corner_of(g, tile);
    for (size y = at.top - border; y < at.top - border + side; y++)
        for (size x = at.left - border; x < at.left - border + side; x++) {
            int inside = y >= 0 && y < g->height && x >= 0 && x < g->width;
            *found++ = inside ? images.at + ((at.image * g->height + y) * g->width + x) * images.pixel : zeros;
        }
}

/* Position p, channel c of a transformed tile lies at p * position + c / PANEL * panel + c % PANEL. */
typedef struct {
    size position, panel;
} layout;

/* Of the side x side pixels around a tile. */
INLINE void transform_tile(void (*of_line)(vector *, int, const vector *, int), int side, int border, const grid *g,
                           size tile, slice images, const float *zeros, float *to, layout where)
{
    const float *from[36];
    pixels_of(g, tile, side, border, images, zeros, from);
    for (size c = 0; c < images.channels; c += LANES) {
        vector given[36], found[36];
        for (int i = 0; i < side * side; i++) given[i] = gather(from[i] + c, images.channels - c, 1);
        on_both_axes(of_line, side, 6, found, given);
        float *place = to + c / PANEL * where.panel + c % PANEL;
        for (int p = 0; p < POSITIONS; p++) store(place + p * where.position, found[p]);
    }
}

static void transform_input(const grid *g, size tile, slice images, const float *zeros, float *to, layout where)
{
    transform_tile(input, 6, 1, g, tile, images, zeros, to, where);
}

static void transform_gradient(const grid *g, size tile, slice gradient, const float *zeros, float *to, layout where)
{
    transform_tile(output_adjoint, 4, 0, g, tile, gradient, zeros, to, where);
}

static int is_zero(const float *from, size channels)
{
    for (size c = 0; c < channels; c += LANES) {
        vector some = gather(from + c, channels - c, 1);
        for (int lane = 0; lane < LANES; lane++)
            if (some[lane] != 0) return 0;
    }
    return 1;
}

/* Bit 4 * y + x: whether the 3x3 pixels that an output of the tile is made of are all 0. */
static unsigned zero_outputs(const grid *g, size tile, slice images, const float *zeros)
{
    const float *from[36];
    unsigned long long zero = 0;
    pixels_of(g, tile, 6, 1, images, zeros, from);
    for (int i = 0; i < 36; i++)
        zero |= (unsigned long long)(from[i] == zeros || is_zero(from[i], images.channels)) << i;
    unsigned found = 0;
    for (int y = 0; y < 4; y++)
        for (int x = 0; x < 4; x++) {
            unsigned long long around = 0x71c7ULL << (6 * y + x); /* three bits of three rows of six */
            found |= (unsigned)((zero & around) == around) << (4 * y + x);
        }
    return found;
}

/* `zero`: as `zero_outputs` gives it. There rounding would leave another value than the bias. */
static void write_outputs(const grid *g, size tile, const float *products, size position, const float *bias,
                          unsigned zero, float *images, size channels, size pixel)
{
    corner at = corner_of(g, tile);
    float *to = images + ((at.image * g->height + at.top) * g->width + at.left) * pixel;
    size height = least(4, g->height - at.top), width = least(4, g->width - at.left);
    for (size c = 0; c < channels; c += LANES) {
        vector given[36], found[16];
        vector shift = bias ? gather(bias + c, channels - c, 1) : (vector){0};
        for (int p = 0; p < POSITIONS; p++) given[p] = load(products + p * position + c);
        on_both_axes(output, 6, 4, found, given);
        for (size y = 0; y < height; y++)
            for (size x = 0; x < width; x++) {
                vector value = shift;
                if (!(zero >> (4 * y + x) & 1)) value += found[4 * y + x];
                store_some(to + (y * g->width + x) * pixel + c, value, channels - c);
            }
    }
}

/* -- matrix products ------------------------------------------------------------------------------------------------ */

/* `rows` by PANEL of a product: c[i][j] = sum over k of a[i * a_row + k * a_step] * b[k][j], and what is there already
   if `add`. b has rows of PANEL, c of c_row. */
INLINE void product_of(int rows, const float *a, size a_row, size a_step, size steps, const float *b, float *c,
                       size c_row, int add)
{
    vector sums[ROWS][VECTORS];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sums[i][v] = add ? load(c + i * c_row + v * LANES) : (vector){0};
    for (size k = 0; k < steps; k++) {
        vector line[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) line[v] = load(b + k * PANEL + v * LANES);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            float factor = a[i * a_row + k * a_step];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sums[i][v] += factor * line[v];
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) store(c + i * c_row + v * LANES, sums[i][v]);
}

static void product(size rows, const float *a, size a_row, size a_step, size steps, const float *b, float *c, size c_row,
                    int add)
{
    for (; rows >= ROWS; rows -= ROWS, a += ROWS * a_row, c += ROWS * c_row)
        product_of(ROWS, a, a_row, a_step, steps, b, c, c_row, add);
    switch (rows) {
    case 1: product_of(1, a, a_row, a_step, steps, b, c, c_row, add); break;
    case 2: product_of(2, a, a_row, a_step, steps, b, c, c_row, add); break;
    case 3: product_of(3, a, a_row, a_step, steps, b, c, c_row, add); break;
    case 4: product_of(4, a, a_row, a_step, steps, b, c, c_row, add); break;
    case 5: product_of(5, a, a_row, a_step, steps, b, c, c_row, add); break;
    }
}

/* -- what Python calls ---------------------------------------------------------------------------------------------- */

/* A weight's element (output o, channel c, tap t) lies at o * output + c * channel + t * tap. `turned`: by 180 degrees. */
typedef struct {
    size output, channel, tap;
    int turned;
} strides;

/* To [outputs / PANEL][position][channels, rounded up][PANEL], a position's values `spread`. */
static void transform_kernels(const float *weight, strides of, size channels, size outputs, float *to, int threads)
{
    size depth = round_up(channels, LANES), panels = round_up(outputs, PANEL) / PANEL, position = spread(depth * PANEL);
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (size panel = 0; panel < panels; panel++)
        for (size c = 0; c < depth; c++)
            for (int v = 0; v < VECTORS; v++) {
                vector given[9], found[36];
                size o = panel * PANEL + v * LANES, count = c < channels && o < outputs ? outputs - o : 0;
                for (int t = 0; t < 9; t++)
                    given[t] = gather(weight + o * of.output + c * of.channel + (of.turned ? 8 - t : t) * of.tap, count,
                                      of.output);
                on_both_axes(kernel, 3, 6, found, given);
                float *place = to + panel * POSITIONS * position + c * PANEL + v * LANES;
                for (int p = 0; p < POSITIONS; p++) store(place + p * position, found[p]);
            }
}

typedef struct {
    size depth, wide, kernels, values, products; /* the last three: floats of a position */
} sizes;

INLINE sizes sizes_of(size channels, size outputs, size at_once)
{
    size depth = round_up(channels, LANES), wide = round_up(outputs, PANEL);
    return (sizes){depth, wide, spread(depth * PANEL), spread(at_once * depth), spread(at_once * wide)};
}

size detectors_convolve_scratch(size channels, size outputs, size at_once, int threads)
{
    sizes of = sizes_of(channels, outputs, at_once);
    return of.depth + POSITIONS * (of.wide / PANEL * of.kernels + threads * (of.values + of.products));
}

/* images [count][height][width][channels] to `outputs` of the `out_pixel` channels [count][height][width][out_pixel] that
   begin at `out`. `bias`: [outputs] or NULL. `at_once`: the most tiles that a thread handles between kernels and outputs.
   `scratch`: as many floats as the function above says. */
void detectors_convolve(const float *images, const float *weight, const float *bias, float *out, size count, size height,
                        size width, size channels, size outputs, size out_pixel, size output_stride,
                        size channel_stride, size tap_stride, int turned, size at_once, float *scratch, int threads)
{
    grid g = grid_of(height, width);
    size tiles = count * g.rows * g.columns, blocks = (tiles + at_once - 1) / at_once;
    sizes of = sizes_of(channels, outputs, at_once);
    float *zeros = scratch, *kernels = zeros + of.depth, *rest = kernels + POSITIONS * of.wide / PANEL * of.kernels;
    memset(zeros, 0, channels * sizeof(float));
    strides step = {output_stride, channel_stride, tap_stride, turned};
    transform_kernels(weight, step, channels, outputs, kernels, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size block = 0; block < blocks; block++) {
        size first = tiles * block / blocks, here = tiles * (block + 1) / blocks - first;
        float *values = rest + omp_get_thread_num() * POSITIONS * (of.values + of.products);
        float *products = values + POSITIONS * of.values;
        for (size tile = 0; tile < here; tile++)
            transform_input(&g, first + tile, (slice){images, channels, channels}, zeros, values + tile * of.depth,
                            (layout){of.values, PANEL});
        for (size p = 0; p < POSITIONS; p++)
            for (size panel = 0; panel < of.wide / PANEL; panel++)
                product(here, values + p * of.values, of.depth, 1, of.depth,
                        kernels + (panel * POSITIONS + p) * of.kernels,
                        products + p * of.products + panel * PANEL, of.wide, 0);
        for (size tile = 0; tile < here; tile++)
            write_outputs(&g, first + tile, products + tile * of.wide, of.products, bias,
                          zero_outputs(&g, first + tile, (slice){images, channels, channels}, zeros), out, outputs,
                          out_pixel);
    }
}

size detectors_weight_gradient_scratch(size channels, size outputs, size at_once)
{
    size wide = round_up(channels, PANEL), high = round_up(outputs, PANEL);
    return wide + high + POSITIONS * (spread(at_once * wide) + spread(at_once * high) + spread(outputs * wide));
}

/* images [count][height][width][channels] and, of the gradient [count][height][width][gradient_pixel] of what they were
   convolved to, the `outputs` channels that begin at `gradient`: the gradient [outputs][3][3][channels] of the weight.
   `at_once`: the most tiles between images and products. */
void detectors_weight_gradient(const float *images, const float *gradient, float *out, size count, size height,
                               size width, size channels, size outputs, size gradient_pixel, size at_once,
                               float *scratch, int threads)
{
    grid g = grid_of(height, width);
    size tiles = count * g.rows * g.columns, parts = (tiles + at_once - 1) / at_once;
    size wide = round_up(channels, PANEL), high = round_up(outputs, PANEL);
    layout of_images = {spread(at_once * wide), at_once * PANEL};
    layout of_gradient = {spread(at_once * high), at_once * PANEL};
    size of_totals = spread(outputs * wide);
    float *zeros = scratch, *values = zeros + wide + high, *given = values + POSITIONS * of_images.position;
    float *totals = given + POSITIONS * of_gradient.position; /* [position][outputs][wide] */
    memset(zeros, 0, (wide + high) * sizeof(float));
    for (size part = 0; part < parts; part++) {
        size first = tiles * part / parts, here = tiles * (part + 1) / parts - first;
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (size tile = 0; tile < here; tile++) {
                transform_input(&g, first + tile, (slice){images, channels, channels}, zeros, values + tile * PANEL,
                                of_images);
                transform_gradient(&g, first + tile, (slice){gradient, outputs, gradient_pixel}, zeros,
                                   given + tile * PANEL, of_gradient);
            }
#pragma omp for schedule(static)
            for (size p = 0; p < POSITIONS; p++)
                for (size panel = 0; panel < wide / PANEL; panel++)
                    for (size o = 0; o < outputs; o += PANEL)
                        product(least(PANEL, outputs - o), given + p * of_gradient.position + o / PANEL * of_gradient.panel,
                                1, PANEL, here, values + p * of_images.position + panel * of_images.panel,
                                totals + p * of_totals + o * wide + panel * PANEL, wide, part > 0);
        }
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size o = 0; o < outputs; o++)
        for (size c = 0; c < channels; c += LANES) {
            vector total[36], found[9];
            for (int p = 0; p < POSITIONS; p++) total[p] = load(totals + p * of_totals + o * wide + c);
            on_both_axes(kernel_adjoint, 6, 3, found, total);
            for (int t = 0; t < 9; t++) store_some(out + (o * 9 + t) * channels + c, found[t], channels - c);
        }
}
