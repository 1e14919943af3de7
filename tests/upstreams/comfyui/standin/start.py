"""What follows the command line: directories, database, worker, server, in the order of the real start."""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import logging
import os
import shutil
import signal
import sqlite3
import sys

from . import options, server, worker
from .folders import Folders

log = logging.getLogger(__name__)


def open_database(url: str) -> object:
    """Create the database file and hold its lock; the real server goes on without one, so does this."""
    path = url.removeprefix("sqlite:///")
    try:
        if path == url:
            raise ValueError(f"Unsupported database URL '{url}'")
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS standin (note TEXT)")
        connection.close()
        if path == ":memory:":
            return None
        lock = open(path + ".lock", "w", encoding="utf-8")  # noqa: SIM115 - held until the process ends
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ValueError, sqlite3.Error) as error:
        log.error("Failed to initialize database: %s", error)
        return None
    return lock


async def serve(args: options.Options, folders: Folders) -> None:
    """Answer until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    outbox = server.Outbox(loop)
    queue = worker.PromptQueue(outbox.queue_changed)
    runner = worker.Runner(queue, outbox, folders, args)
    application = server.build(args, folders, queue, runner, outbox)
    if args.quick_test_for_ci:
        return
    os.makedirs(folders.temp, exist_ok=True)
    runner.start()
    publisher = asyncio.create_task(outbox.publish())
    web_runner = await server.listen(application, args)
    await stop.wait()
    publisher.cancel()
    runner.stop()
    await web_runner.cleanup()


def run(args: options.Options) -> None:
    """Prepare, serve, tidy up."""
    logging.basicConfig(
        level=args.verbose, stream=sys.stdout if args.log_stdout else sys.stderr, format="[%(levelname)s] %(message)s"
    )
    log.info("This is a stand-in for ComfyUI, made for tests. It generates no images from models.")
    folders = Folders(args)
    if args.base_directory:
        log.info("Setting base directory to: %s", folders.base)
    if not args.disable_all_custom_nodes or args.whitelist_custom_nodes:
        # Not guarded, as in the real server: a missing folder ends the start.
        for name in sorted(os.listdir(folders.custom_nodes)):
            log.info("The stand-in loads no custom nodes: %s", name)
    log.info("Python version: %s", sys.version)
    log.info("ComfyUI version: %s", importlib.import_module("comfyui_version").__version__)
    shutil.rmtree(folders.temp, ignore_errors=True)
    folders.create()
    lock = open_database(args.database_url)
    try:
        asyncio.run(serve(args, folders))
    finally:
        shutil.rmtree(folders.temp, ignore_errors=True)
        del lock
    log.info("Stopped server")
