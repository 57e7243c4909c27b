"""A scheduler and two worker processes; says its address and their pids, and lives until it is ended."""

import sys
import time


def main() -> None:
    import distributed

    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        print(cluster.scheduler_address, *(worker.pid for worker in cluster.workers.values()), flush=True)
        while True:
            time.sleep(60)


if __name__ == "__main__":
    sys.exit(main())
