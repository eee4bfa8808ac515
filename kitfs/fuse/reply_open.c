/* Answers to OPEN that have the kernel read a file by itself (FUSE passthrough), for a libfuse that can not say so.

   libfuse before 3.17 leaves the last four bytes of fuse_open_out empty, where the number of the backing file belongs.
   This module defines fuse_reply_open(). Loaded with RTLD_GLOBAL before pyfuse3, it comes before libfuse's in the order
   in which symbols are looked up, so pyfuse3 calls it. It sends those sixteen bytes itself where the next answer was
   marked, and calls libfuse's own in every other case. One thread: that of pyfuse3's event loop.

   Used by kitfs.fuse.passthrough; built where there is a compiler, and everything works without it. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#define FUSE_USE_VERSION 31
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <fuse3/fuse_lowlevel.h>

#define OPEN_PASSTHROUGH (1u << 7) /* FOPEN_PASSTHROUGH, linux/fuse.h 7.40 */

struct open_out { /* struct fuse_open_out, linux/fuse.h 7.40 */
    uint64_t handle;
    uint32_t flags;
    int32_t backing_id;
};

typedef int reply_open(fuse_req_t, const struct fuse_file_info *);

static reply_open *libfuse_reply_open;
static uint64_t marked_handle;
static int32_t marked_id; /* 0: the next answer is libfuse's */

int fuse_reply_open(fuse_req_t request, const struct fuse_file_info *info)
{
    struct open_out out = {info->fh, OPEN_PASSTHROUGH, marked_id};
    marked_id = 0;
    if (out.backing_id > 0 && info->fh == marked_handle)
        return fuse_reply_buf(request, (const char *)&out, sizeof out);
    return libfuse_reply_open(request, info);
}

static PyObject *mark(PyObject *module, PyObject *arguments)
{
    unsigned long long handle;
    int id;
    if (!PyArg_ParseTuple(arguments, "Ki", &handle, &id))
        return NULL;
    marked_handle = handle;
    marked_id = id;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"mark", mark, METH_VARARGS,
     "mark(handle, id): the next answer to OPEN, when it is for this handle, names a backing file; 0 for none."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_reply_open", "Answers to OPEN that name a backing file.", -1, methods,
};

PyMODINIT_FUNC PyInit__reply_open(void)
{
    libfuse_reply_open = (reply_open *)dlsym(RTLD_NEXT, "fuse_reply_open");
    if (libfuse_reply_open == NULL) {
        PyErr_SetString(PyExc_ImportError, "libfuse has no fuse_reply_open");
        return NULL;
    }
    return PyModule_Create(&definition);
}
