// cp.async: a copy into shared memory of which nothing is there before its group is waited for.
#include <bit>

#include "block.h"

namespace dmao::cuda_on_host {
namespace {

bool aligned(const void* address, int bytes) {
    return std::bit_cast<std::uintptr_t>(address) % static_cast<std::uintptr_t>(bytes) == 0;
}

}  // namespace

void async_copy(void* target, const void* source, int bytes, int valid) {
    if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async: moves 4, 8 or 16 bytes");
    if (valid < 0 || valid > bytes) fail("cp.async: the source is longer than what is moved");
    if (!aligned(target, bytes) || (valid > 0 && !aligned(source, bytes))) {
        fail("cp.async: an address is not aligned");
    }
    if (forbidden(target, bytes)) fail("cp.async: the target is not inside of shared memory");
    if (valid > 0 && forbidden(source, valid)) fail("cp.async: the source is out of bounds");
    Thread& thread = block->running();
    if (thread.copies.size() == kMostCopies) fail("cp.async: too many copies at once");
    note_write(target, bytes);
    fill_bytes(target, kNaN, bytes);
    thread.copies.push_back({target, source, bytes, valid, thread.group});
}

void async_commit() { ++block->running().group; }

void async_wait(int pending) {
    Thread& thread = block->running();
    std::size_t kept = 0;
    for (const AsyncCopy& copy : thread.copies) {
        if (copy.group >= thread.group - pending) {
            thread.copies[kept++] = copy;
            continue;
        }
        note_read(copy.source, copy.valid);
        note_write(copy.target, copy.bytes);
        copy_bytes(copy.target, copy.source, copy.valid);
        fill_bytes(static_cast<char*>(copy.target) + copy.valid, 0, copy.bytes - copy.valid);
    }
    thread.copies.resize(kept);
}

}  // namespace dmao::cuda_on_host
