# SPDX-License-Identifier: BSD-3-Clause
"""How a software IOMMU behaves: honestly and at once, slowly, in another order, lying, dying."""

from . import wire


class Script:
    """Honest, at once. The others change one thing each."""

    def translate(self, iommu, request):
        iommu.answer(request)

    def page_group(self, iommu, group):
        iommu.respond(group)


class Slow(Script):
    """Keeps requests until they are released, in any order the test wants."""

    def __init__(self, translates=True, pages=True):
        self.keep_translates = translates
        self.keep_pages = pages
        self.translates = []
        self.groups = []

    def translate(self, iommu, request):
        if self.keep_translates:
            self.translates.append(request)
        else:
            iommu.answer(request)

    def page_group(self, iommu, group):
        if self.keep_pages:
            self.groups.append(group)
        else:
            iommu.respond(group)

    def wait_translates(self, iommu, number):
        while len(self.translates) < number:
            iommu.client.pump()

    def wait_groups(self, iommu, number):
        while len(self.groups) < number:
            iommu.client.pump()

    def release(self, iommu, order=lambda held: held):
        """Answers all that is kept; order gets the list and returns it rearranged."""
        translates, self.translates = self.translates, []
        groups, self.groups = self.groups, []
        for request in order(translates):
            iommu.answer(request)
        for group in order(groups):
            iommu.respond(group)


class Reorder(Script):
    """Answers every so many requests at once, the last first."""

    def __init__(self, number):
        self.number = number
        self.translates = []
        self.groups = []

    def _reversed_when_full(self, held, item, answer):
        held.append(item)
        if len(held) == self.number:
            for one in reversed(held):
                answer(one)
            held.clear()

    def translate(self, iommu, request):
        self._reversed_when_full(self.translates, request, iommu.answer)

    def page_group(self, iommu, group):
        self._reversed_when_full(self.groups, group, iommu.respond)


class LieInEntries(Script):
    """change(entries) gets the honest entries and returns others; header lies in the fixed part."""

    def __init__(self, change=lambda entries: entries, **header):
        self.change = change
        self.header = header

    def translate(self, iommu, request):
        iommu.reply_entries(request, self.change(iommu.entries(request)), grant=False,
                            **self.header)


class RefuseTranslations(Script):
    def __init__(self, error):
        self.error = error

    def translate(self, iommu, request):
        iommu.refuse(request, self.error)


class LieInResponses(Script):
    """Responds with another code or group; pages stay as they are unless the code is None."""

    def __init__(self, code=wire.PRQ_SUCCESS, index=None):
        self.code = code
        self.index = index

    def page_group(self, iommu, group):
        iommu.respond(group, self.code, self.index)


class Die(Script):
    """Answers so many requests of either kind and then closes the connection instead."""

    def __init__(self, after):
        self.left = after

    def _alive(self, iommu):
        self.left -= 1
        if self.left < 0:
            iommu.client.channel.close()
        return self.left >= 0

    def translate(self, iommu, request):
        if self._alive(iommu):
            iommu.answer(request)

    def page_group(self, iommu, group):
        if self._alive(iommu):
            iommu.respond(group)
