// Finds results that depend on the order in which blocks, threads, streams or a graph's nodes run,
// or on when asynchronous work lands.
#pragma once

#include <functional>

namespace tessera::simt {

// Calls `work`, which issues launches, under several orders, each time from the same device memory
// (what is allocated now), and compares that memory bit by bit. Throws Fault when a byte differs:
// two runs more find which kernel, block and thread wrote it in each order. Memory is left as the
// first order, the ascending one, makes it. `random_orders` seeds beyond options().seed are tried.
void check_order(const std::function<void()>& work, int random_orders = 3);

}  // namespace tessera::simt
